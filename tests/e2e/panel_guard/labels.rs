//! The instance that a debit's description names: exactly one, or the debit is rejected.

use std::collections::HashMap;

use billing_test_support::{Db, Fleet, Instance, Login, Plan};
use chrono::TimeDelta;
use rand::{RngExt as _, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use super::{debit, install_guard, number};
use crate::daemon::{fetch, now};

/// What labels are made of: everything that a pattern, a quoting or a parser may trip over.
const PIECES: [&str; 24] = [
    "web",
    "a",
    " ",
    "  ",
    "%",
    "_",
    "'",
    "''",
    "\"",
    "\\",
    "\n",
    "(",
    ")",
    " (3h)",
    " (1h)",
    "(1h)",
    "$1",
    "*",
    ".",
    "é",
    "e\u{301}",
    "日本",
    "🦀",
    "VPS Hourly Billing - ",
];

fn label(random: &mut StdRng) -> String {
    let pieces = random.random_range(0..5);
    (0..pieces).map(|_| PIECES[random.random_range(0..PIECES.len())]).collect()
}

#[tokio::test]
async fn debit_charges_only_named_instance() {
    const SEED: u64 = 0x000F_E11C;
    let db = Db::g3_role().await;
    install_guard(&db).await;
    let fleet = Fleet::new(&db);
    let plan = fleet.plan(Plan::monthly("7.30")).await;
    let created = now(&db).await - TimeDelta::minutes(150);
    let panel = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    let mut random = StdRng::seed_from_u64(SEED);
    let (mut charged, mut refused) = (0, 0);
    for round in 0..25 {
        // Two organizations have instances of the same labels, and one has some labels twice.
        let (org, other) = (fleet.wallet("100.00").await, fleet.wallet("100.00").await);
        let mut labels: Vec<String> = (0..6).map(|_| label(&mut random)).collect();
        labels.push(labels[0].clone());
        labels.push(format!("{} (2h)", labels[1]));
        let mut instances: HashMap<String, Vec<Uuid>> = HashMap::new();
        for label in &labels {
            let instance = fleet.instance(Instance::new(org, plan, created).label(label)).await;
            fleet.instance(Instance::new(other, plan, created).label(label)).await;
            instances.entry(label.clone()).or_default().push(instance);
        }
        let unknown = format!("{}?", labels[2]);
        for label in labels.iter().chain([&unknown]) {
            let context = format!("seed {SEED}, round {round}, label {label:?}");
            let before = number(&db, "SELECT count(*) FROM billing_charges").await;
            let debited = debit(&panel, org, "-0.01", &format!("VPS Hourly Billing - {label} (1h)")).await;
            let after = number(&db, "SELECT count(*) FROM billing_charges").await;
            if let Some([only]) = instances.get(label).map(Vec::as_slice) {
                assert_eq!(debited, Ok(()), "{context}");
                let newest = "SELECT instance_id FROM billing_charges ORDER BY batch_id DESC LIMIT 1";
                assert_eq!((after, fetch(&db, newest).await), (before + 1, only.to_string()), "{context}");
                charged += 1;
            } else {
                assert!(debited.expect_err(&context).contains("cannot be charged to one"), "{context}");
                assert_eq!(after, before, "{context}");
                refused += 1;
            }
        }
    }
    assert!(charged > 100 && refused > 50, "{charged} charged, {refused} refused");
    assert_eq!(number(&db, "SELECT count(*) FROM billing_charges WHERE hours <> 1").await, 0);
}

#[tokio::test]
async fn debit_without_reference_is_rejected() {
    let db = Db::g3_role().await;
    install_guard(&db).await;
    let fleet = Fleet::new(&db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly("7.30")).await;
    let created = now(&db).await - TimeDelta::minutes(150);
    fleet.instance(Instance::new(org, plan, created).label("web")).await;
    let panel = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    for (description, amount, output) in [
        ("web", "-0.01", "does not name"),
        ("", "-0.01", "does not name"),
        ("web (h)", "-0.01", "does not name"),
        ("web (0h)", "-0.01", "does not name"),
        ("web (-1h)", "-0.01", "does not name"),
        ("web (1.5h)", "-0.01", "does not name"),
        ("web (1 h)", "-0.01", "does not name"),
        ("web (1h) ", "-0.01", "does not name"),
        ("web (1h)\n", "-0.01", "does not name"),
        ("web (1H)", "-0.01", "does not name"),
        ("web (٣h)", "-0.01", "does not name"),
        ("web (1000000h)", "-0.01", "does not name"),
        ("web(1h)", "-0.01", "does not name"),
        ("web  (1h)", "-0.01", "no instance of organization"),
        ("Web (1h)", "-0.01", "no instance of organization"),
        ("web (3h)", "-0.03", "pays for hours that are not due"),
        ("web (999999h)", "-0.01", "pays for hours that are not due"),
        ("web (1h)", "0.01", "is not a completed payment"),
        ("web (1h)", "NaN", "is not a completed payment"),
    ] {
        let debited = debit(&panel, org, amount, &format!("VPS Hourly Billing - {description}")).await;
        let refused = debited.expect_err(description);
        assert!(refused.contains(output), "{description:?} of {amount}: {refused}");
    }
    for value in ["'infinity'", "'-infinity'", "NULL"] {
        db.execute(&format!("UPDATE vps_instances SET created_at = {value}")).await;
        let refused = debit(&panel, org, "-0.01", "VPS Hourly Billing - web (1h)").await;
        let refused = refused.expect_err(value);
        assert!(refused.contains("pays for hours that are not due"), "{value}: {refused}");
        db.execute(&format!("UPDATE vps_instances SET created_at = '{created}'")).await;
    }
    let pending = "INSERT INTO payment_transactions
             (organization_id, amount, payment_method, payment_provider, status, description)
         SELECT id, -0.01, 'wallet_debit', 'internal', 'failed', 'VPS Hourly Billing - web (1h)' FROM organizations";
    let refused = sea_orm::ConnectionTrait::execute_unprepared(&panel, pending).await.expect_err("refused");
    assert!(refused.to_string().contains("is not a completed payment"), "{refused}");

    assert_eq!(number(&db, "SELECT count(*) FROM billing_charges").await, 0);
    assert_eq!(debit(&panel, org, "-0.01", "VPS Hourly Billing - web (1h)").await, Ok(()));
    assert_eq!(
        debit(&panel, org, "0.00", "VPS Hourly Billing - web (1h)").await,
        Ok(()),
        "an hour for nothing"
    );
}
