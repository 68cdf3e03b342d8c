//! `adopt` and `release`: the handover from the panel's biller to ours, and back.

use billing_jobs::billing::{Adoption, Biller, BillingError, BillingSettings, HandoverError};
use billing_test_support::{
    Db, Ended, Fleet, Instance, Login, Plan, on_every_database, on_every_engine, on_variants,
    panel_biller::Crash,
};
use chrono::TimeDelta;
use sea_orm::DbBackend;
use uuid::Uuid;

use super::{Daemon, assert_sound, install_guard, number, panel, seed};
use crate::daemon::{fetch, job, now, program, rows};

async fn run(db: &Db, arguments: &str) -> Ended {
    program().env("DATABASE_URL", &db.url).run(arguments).await
}

async fn adopt(db: &Db, commit: bool) -> Adoption {
    let Daemon { db, panel, .. } = Daemon::of(db).await;
    Biller::new(db, panel, BillingSettings::default()).adopt(commit, "ada").await.expect("no daemon bills")
}

fn found(adoption: &Adoption) -> Vec<(&str, u64)> {
    adoption.findings.iter().map(|(kind, findings)| (kind.as_str(), findings.count)).collect()
}

/// Every problem that a fleet can have, once; and an organization with nothing wrong but its drift, returned.
async fn a_fleet_with_faults(db: &Db) -> Uuid {
    let fleet = Fleet::new(db);
    let created = now(db).await - TimeDelta::minutes(150);
    let plan = fleet.plan(Plan::monthly("7.30")).await;
    let unpriced = fleet.plan(Plan::unpriced()).await;
    let org = fleet.wallet("99.00").await;
    fleet.top_up(org, "1.00").await;
    for (label, last_billed_at) in [("one", None), ("two", Some(created + TimeDelta::hours(1)))] {
        let instance = Instance::new(org, plan, created).label(label).backups("none");
        fleet.instance(last_billed_at.map_or(instance.clone(), |at| instance.billed(at))).await;
    }
    fleet.instance(Instance::new(org, unpriced, created).label("unpriced").backups("none")).await;
    fleet.instance(Instance::new(org, "no-such-plan", created).label("unknown")).await;
    let late = created - TimeDelta::hours(100);
    fleet.instance(Instance::new(org, plan, late).label("late").backups("none")).await;
    let timeless = fleet.instance(Instance::new(org, plan, created).label("timeless")).await;
    db.execute(&format!("UPDATE vps_instances SET created_at = NULL WHERE id = '{timeless}'")).await;
    let poor = fleet.organization().await;
    fleet.instance(Instance::new(poor, plan, created).label("poor").backups("none")).await;
    let twice = fleet.wallet("5.00").await;
    fleet.wallet_of(twice, "5.00").await;
    fleet.instance(Instance::new(twice, plan, created).label("twice").backups("none")).await;
    org
}

const METERS: &str = "SELECT count(*) FROM billing_meters";
const BASELINES: &str = "SELECT count(*) FROM billing_wallet_openings";

async fn adopt_continues_where_panel_stopped(db: &Db) {
    let org = a_fleet_with_faults(db).await;
    for commit in [false, true] {
        let adoption = adopt(db, commit).await;
        assert_eq!(
            (adoption.wallets, adoption.baselines, adoption.drift.to_string().as_str()),
            (3, 1, "99.00 USD")
        );
        assert_eq!((adoption.instances, adoption.meters), (8, 7));
        // Two hours of each instance, one of `two`, and a hundred more of `late`.
        assert_eq!((adoption.due_instances, adoption.due_hours), (7, 113));
        // Those that can be priced, at a cent; one has no wallet.
        assert_eq!(adoption.due_amounts.to_string(), "1.07 USD, 0.02");
        assert_eq!(adoption.due_unpriced, 2);
        let expected = [
            ("catch_up_limit", 1),
            ("drift", 1),
            ("duplicate_wallets", 2),
            ("invalid_time", 1),
            ("no_price", 1),
            ("no_wallet", 1),
            ("plan_without_price", 1),
            ("unknown_plan", 1),
        ];
        assert_eq!(found(&adoption), expected);
        let written = if commit { ("7", "1") } else { ("0", "0") };
        assert_eq!((fetch(db, METERS).await.as_str(), fetch(db, BASELINES).await.as_str()), written);
        let prices = fetch(db, "SELECT count(DISTINCT plan_id) FROM billing_seen_rates").await;
        assert_eq!(prices, if commit { "1" } else { "0" });
    }
    let again = adopt(db, true).await;
    assert_eq!((again.wallets, again.baselines, again.instances, again.meters), (3, 0, 8, 0));
    assert_eq!(again.due_hours, 113);
    assert!(!again.findings.contains_key("drift"), "it is written down");
    assert_sound(db).await;

    let daemon = Daemon::of(db).await;
    assert_eq!(daemon.bill().await.expect("it bills"), 3, "`one` and `two`");
    assert_eq!(Fleet::new(db).balance(org).await, 99_97 * 100);
    assert_sound(db).await;
}

/// Whatever the panel does to the price or to the anchor afterwards.
async fn adopted_arrears_keep_their_price(db: &Db) {
    let fleet = Fleet::new(db);
    let created = now(db).await - TimeDelta::minutes(150);
    let (org, plan) = (fleet.wallet("100.00").await, fleet.plan(Plan::monthly("7.30")).await);
    let instance = fleet
        .instance(Instance::new(org, plan, created).billed(created + TimeDelta::hours(1)).backups("none"));
    let instance = instance.await;
    adopt(db, true).await;
    fleet.reprice(plan, Some("730.00")).await;
    db.execute("UPDATE vps_instances SET last_billed_at = NULL").await;
    assert_eq!(Daemon::of(db).await.bill().await.expect("it bills"), 1);
    assert_eq!(fleet.balance(org).await, 99_99 * 100);
    assert_eq!(fleet.last_billed_at(instance).await, Some(created + TimeDelta::hours(2)));
    assert_sound(db).await;
}

/// An instance without a price at the adoption costs its price once it has one.
async fn instance_is_charged_after_price_appears(db: &Db) {
    let fleet = Fleet::new(db);
    let created = now(db).await - TimeDelta::minutes(150);
    let (org, plan) = (fleet.wallet("100.00").await, fleet.plan(Plan::unpriced()).await);
    fleet.instance(Instance::new(org, plan, created).backups("none")).await;
    adopt(db, true).await;
    let daemon = Daemon::of(db).await;
    assert_eq!(daemon.bill().await.expect("it bills"), 0);
    assert_eq!(fetch(db, "SELECT reason FROM billing_holds").await, "no_price");
    fleet.reprice(plan, Some("7.30")).await;
    assert_eq!(daemon.bill().await.expect("it bills"), 2);
    assert_eq!(fleet.balance(org).await, 99_98 * 100);
    assert_sound(db).await;
}

async fn handover_during_billing_is_rejected(db: &Db) {
    seed(db, 1, 1, 2).await;
    let daemon = Daemon::of(db).await;
    let lease = daemon.claim().await;
    for command in ["adopt", "adopt --dry-run", "release"] {
        let output = run(db, command).await.expect_code(75);
        assert!(output.err[0].starts_with("error: billing is being run by "), "{}", output.text());
    }
    daemon.let_go(&lease).await;
    let now = if db.backend() == DbBackend::Sqlite {
        "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')"
    } else {
        "now()"
    };
    db.execute(&format!(
        "INSERT INTO billing_daemon_status (daemon_instance_id, status, heartbeat_at, created_at, updated_at)
         VALUES ('alive-1', 'running', {now}, {now}, {now})"
    ))
    .await;
    let output = run(db, "release").await.expect_code(75);
    assert_eq!(output.err, ["error: the daemon alive-1 is alive and would continue to bill: stop it first"]);
    assert_eq!(fetch(db, METERS).await, "0");
    run(db, "adopt").await.expect_code(0);
    db.execute("UPDATE billing_daemon_status SET status = 'stopped'").await;
    run(db, "release").await.expect_code(0);
}

async fn release_leaves_panel_complete_state(db: &Db) {
    let instances = seed(db, 2, 1, 3).await;
    let fleet = Fleet::new(db);
    let daemon = Daemon::of(db).await;
    assert_eq!(daemon.bill().await.expect("it bills"), 6);
    let old = daemon.claim().await;
    daemon.let_go(&old).await;
    let reach = fleet.last_billed_at(instances[0]).await;
    // Like a restore of the panel's tables alone; and a daemon that was killed long ago.
    db.execute("UPDATE vps_instances SET last_billed_at = NULL").await;
    db.execute("DELETE FROM vps_billing_cycles").await;
    let long_ago =
        if db.backend() == DbBackend::Sqlite { "'2020-01-01T00:00:00+00:00'" } else { "'2020-01-01'" };
    db.execute(&format!(
        "INSERT INTO billing_daemon_status (daemon_instance_id, status, heartbeat_at, created_at, updated_at)
         VALUES ('dead-1', 'running', {long_ago}, {long_ago}, {long_ago})"
    ))
    .await;
    let token_before = number(db, "SELECT fencing_token FROM scheduler_fencing").await;

    for (round, expected) in [(2, "2 2 1"), (0, "0 0 0")] {
        let output = run(db, "release --json").await.expect_code(0);
        let shown: serde_json::Value = serde_json::from_str(&output.out[0]).expect("one object");
        let counts = ["anchors", "cycles", "daemons"].map(|key| shown[key].to_string()).join(" ");
        assert_eq!(counts, expected, "{}", output.text());
        assert_eq!(shown["held"], 0);
        for instance in &instances {
            assert_eq!(fleet.last_billed_at(*instance).await, reach);
            assert_eq!(fleet.cycles(*instance).await.len(), 1, "{round}");
        }
        assert_eq!(fetch(db, "SELECT last_success_at FROM scheduler_fencing").await, "-");
        assert_eq!(
            rows(db, "status FROM billing_daemon_status WHERE heartbeat_at IS NULL").await,
            ["stopped"]
        );
        assert_eq!(number(db, "SELECT fencing_token FROM scheduler_fencing").await, token_before + 1);
    }
    seed(db, 1, 1, 2).await;
    let refused = daemon.bill_under(old.fencing_token).await;
    assert!(matches!(refused, Err(BillingError::Fenced)), "{refused:?}");
    assert_eq!(daemon.bill().await.expect("a new claim bills"), 2);
    assert_sound(db).await;
}

on_every_database!(adopt_continues_where_panel_stopped);
on_variants!(adopted_arrears_keep_their_price: sqlite, g1_role, g3_role);
on_every_engine!(instance_is_charged_after_price_appears, handover_during_billing_is_rejected);
on_variants!(release_leaves_panel_complete_state: sqlite, postgres, g1_role, g2_owner, g3_role);

#[tokio::test]
async fn guarded_panel_bills_immediately_after_release() {
    let db = Db::g3_role().await;
    install_guard(&db).await;
    seed(&db, 1, 1, 2).await;
    assert_eq!(Daemon::of(&db).await.bill().await.expect("it bills"), 2);
    seed(&db, 1, 2, 2).await;
    let panel = panel(&db, &db.url_for(Login::Owner)).await;
    assert_eq!(panel.pass().await.billed, 0);
    let output = run(&db, "release").await.expect_code(0);
    assert!(output.out.last().is_some_and(|line| line.contains("guard remove")), "{}", output.text());
    let due = panel.due().await;
    panel.bill(&due[0], Crash::AfterDebit).await;
    let output = run(&db, "release").await.expect_code(0);
    let left = output.out.iter().find(|line| line.starts_with("left alone")).expect("a row");
    assert!(left.contains(" 1 "), "{}", output.text());
    assert_eq!(panel.pass().await.billed, 1);
    assert_sound(&db).await;
}

#[tokio::test]
async fn adopt_prints_table_and_json() {
    let db = Db::g3_role().await;
    a_fleet_with_faults(&db).await;
    db.execute("UPDATE vps_instances SET label = 'one' WHERE label = 'two'").await;
    let output = run(&db, "adopt --dry-run").await.expect_code(0);
    assert!(output.err.is_empty(), "{}", output.text());
    let starts = [
        "with a panel of generation G3; the panel guard is off",
        "wallets             3",
        "  baselines         1  first balances, where the audit starts",
        "  drifting          1  by 99.00 USD in total",
        "instances           8",
        "  meters            7  set to where the panel stopped",
        "  due               7  113 hours, 1.07 USD, 0.02",
        "catch_up_limit      1  instance late (",
        "drift               1  wallet ",
        "duplicate_label     1  2 instances of organization ",
        "duplicate_wallets   2  organization ",
        "                       organization ",
        "invalid_time        1  instance timeless (",
        "no_price            1  instance unpriced (",
        "no_wallet           1  instance poor (",
        "plan_without_price  1  plan `",
        "unknown_plan        1  instance unknown (",
        "nothing was changed: this was a dry run",
    ];
    assert_eq!(output.out.len(), starts.len(), "{}", output.text());
    for (line, start) in output.out.iter().zip(starts) {
        assert!(line.starts_with(start), "`{start}` is not how this begins: {line}");
    }
    let output = run(&db, "adopt --json").await.expect_code(0);
    let shown: serde_json::Value = serde_json::from_str(&output.out[0]).expect("one object");
    assert_eq!(
        (&shown["generation"], &shown["panel"], &shown["guard"]),
        (&"G3".into(), &true.into(), &false.into())
    );
    assert_eq!(
        (&shown["dry_run"], &shown["meters"], &shown["drift"]),
        (&false.into(), &7.into(), &serde_json::json!({ "USD": "99.00" }))
    );
    assert_eq!(shown["findings"]["duplicate_wallets"]["count"], 2);
    assert_eq!(number(&db, METERS).await, 7);
}

/// With a factor of 2.5 where the panel charges 1.5, and with the panel's own.
#[tokio::test]
async fn adopt_lists_differing_prices() {
    let db = Db::g2_role().await;
    let fleet = Fleet::new(&db);
    let (org, created) = (fleet.wallet("100.00").await, now(&db).await - TimeDelta::minutes(150));
    let plan = fleet.plan(Plan::monthly("7.30").backup_hourly("0.030000")).await;
    for (frequency, instances) in [("none", 1), ("weekly", 1), ("daily", 23)] {
        for number in 0..instances {
            let label = format!("{frequency}-{number}");
            fleet.instance(Instance::new(org, plan, created).label(&label).backups(frequency)).await;
        }
    }
    let jobs = |factor: &str| {
        job("billing", "billing", "1h", &format!("params = {{ daily-backup-factor = '{factor}' }}"))
    };
    let with = |factor| program().env("DATABASE_URL", &db.url).file("jobs.toml", &jobs(factor));

    let shown = with("2.5").run("adopt --dry-run").await.expect_code(0);
    let lines =
        shown.out.iter().filter(|line| line.contains(": 0.085000 an hour, the panel charges 0.055000"));
    assert_eq!(lines.count(), 20, "{}", shown.text());
    assert!(
        shown.out.iter().any(|line| line.starts_with("price_differs  23  instance daily-")),
        "{}",
        shown.text()
    );
    assert!(shown.out.iter().any(|line| line.ends_with("and 3 more: see --json")), "{}", shown.text());

    let shown = with("2.5").run("adopt --dry-run --json").await.expect_code(0);
    let shown: serde_json::Value = serde_json::from_str(&shown.out[0]).expect("one object");
    let differences = shown["price_differences"].as_array().expect("a list");
    assert_eq!(differences.len(), 23);
    let prices = (&differences[0]["hourly_price"], &differences[0]["panel_hourly_price"]);
    assert_eq!(prices, (&"0.085000".into(), &"0.055000".into()));

    for program in [with("1.5"), program().env("DATABASE_URL", &db.url)] {
        let shown = program.run("adopt --dry-run --json").await.expect_code(0);
        let shown: serde_json::Value = serde_json::from_str(&shown.out[0]).expect("one object");
        assert_eq!(shown["price_differences"], serde_json::json!([]));
    }
}

/// An error of the library contains the help, without a command.
#[tokio::test]
async fn library_rejects_handover_during_run() {
    let db = Db::sqlite().await;
    let daemon = Daemon::of(&db).await;
    let _lease = daemon.claim().await;
    let refused = daemon.biller().adopt(true, "ada").await;
    assert!(matches!(&refused, Err(HandoverError::Busy { .. })), "{refused:?}");
}
