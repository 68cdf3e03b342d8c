//! A price that changes counts from the hour in which it is first seen; hours that ended before keep the old one.

use billing_jobs::{
    billing::{BillingError, Mode},
    panel::Generation,
    price::Backups,
};
use billing_test_support::{ChargeRow, Db, Fleet, Instance, Plan, on_every_database};
use serde_json::json;
use uuid::Uuid;

use super::{CENT, Daemon, Order, assert_sound, charged, fetch_rows, hold_of, hour, minute, number, usd};

const SEEN: &str = "SELECT count(*) FROM billing_seen_rates";

fn charge(from: i64, hours: i64, cents_an_hour: i64) -> ChargeRow {
    ChargeRow { start: hour(from), hours, amount: hours * cents_an_hour * CENT }
}

async fn hours_before_price_change_keep_old_price(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly("73.00")).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(2)).await;
    fleet.reprice(plan, Some("146.00")).await;

    // In the middle of the fifth hour: two have ended, and the current one is the first at the new price.
    daemon.bill(minute(4 * 60 + 30)).await;
    daemon.bill(hour(6)).await;

    assert_eq!(fleet.charges(instance).await, [charge(0, 2, 10), charge(2, 2, 10), charge(4, 2, 20)]);
    let cycles = fleet.cycles(instance).await;
    let rates: Vec<_> = cycles.iter().map(|cycle| (cycle.hourly_rate, cycle.total)).collect();
    assert_eq!(rates, [(10 * CENT, 20 * CENT), (10 * CENT, 20 * CENT), (20 * CENT, 40 * CENT)]);
    assert_sound(db).await;
}

async fn arrears_keep_price_of_each_hour(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("0.00").await;
    let plan = fleet.plan(Plan::monthly("73.00")).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0)).label("late")).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(2)).await;
    fleet.reprice(plan, Some("146.00")).await;
    daemon.bill(hour(4)).await;
    fleet.reprice(plan, Some("219.00")).await;
    daemon.bill(hour(6)).await;
    assert_eq!(hold_of(&fleet, instance).await.amount, Some(80 * CENT));

    // Five hours at the first two prices; the rest later, when the prices are known from the meter alone.
    fleet.top_up(org, "0.60").await;
    daemon.bill(hour(6)).await;
    assert_eq!(fleet.charges(instance).await, [charge(0, 4, 10), charge(4, 1, 20)]);
    fleet.top_up(org, "10.00").await;
    daemon.bill(hour(8)).await;

    let expected = [charge(0, 4, 10), charge(4, 1, 20), charge(5, 1, 20), charge(6, 2, 30)];
    assert_eq!(fleet.charges(instance).await, expected);
    assert_eq!(fleet.balance(org).await, usd("9.20"));
    assert_eq!(fleet.cycles(instance).await.len(), 4, "one cycle for each price");
    assert_sound(db).await;
}

async fn deleted_instance_pays_last_seen_prices(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("0.00").await;
    let plan = fleet.plan(Plan::monthly("73.00")).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(2)).await;
    fleet.reprice(plan, Some("146.00")).await;
    daemon.bill(hour(3)).await;
    daemon.bill(hour(5)).await;
    fleet.delete(instance).await;
    fleet.reprice(plan, Some("999.00")).await;
    fleet.top_up(org, "10.00").await;

    daemon.bill(hour(9)).await;

    assert_eq!(fleet.charges(instance).await, [charge(0, 3, 10), charge(3, 2, 20)]);
    assert_sound(db).await;
}

async fn missing_price_keeps_seen_prices(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly("73.00")).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;
    fleet.reprice(plan, None).await;
    daemon.bill(hour(3)).await;
    assert_eq!(hold_of(&fleet, instance).await.reason, "no_price");
    fleet.reprice(plan, Some("146.00")).await;

    daemon.bill(hour(5)).await;
    daemon.bill(hour(6)).await;

    assert_eq!(fleet.charges(instance).await, [charge(0, 1, 10), charge(1, 4, 10), charge(5, 1, 20)]);
    assert_sound(db).await;
}

/// A bigger plan is a new price like any other.
async fn plan_change_applies_from_then_on(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let small = fleet.plan(Plan::monthly("73.00")).await;
    let large = fleet.plan(Plan::monthly("365.00")).await;
    let instance = fleet.instance(Instance::new(org, small, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;
    db.execute(&format!("UPDATE vps_instances SET plan_id = '{large}' WHERE id = '{instance}'")).await;

    daemon.bill(hour(2)).await;
    daemon.bill(hour(3)).await;

    assert_eq!(charged(&fleet, instance).await, (3, 3, 70 * CENT));
    assert_sound(db).await;
}

/// What an instance is called, the name of its plan, when it was created, up to when the panel billed it, and what it pays: the start,
/// the hours, and the cents for each of them.
type Imported = (&'static str, &'static str, i64, Option<i64>, [(i64, i64, i64); 2]);

/// Runs see 10 cents until hour 8, and 20 from there on. The price changed between two runs.
async fn instances_without_meter_pay_hourly_prices(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly("73.00").backup_hourly("0.020000").provider_plan_id("nano")).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(2)).await;

    let during_the_outage: [Imported; 4] = [
        ("created in the outage", "", 3, None, [(3, 5, 10), (8, 2, 20)]),
        ("created after the change", "", 6, None, [(6, 2, 10), (8, 2, 20)]),
        ("older than the first price", "", -9, Some(1), [(1, 7, 10), (8, 2, 20)]),
        ("by the provider's name", "nano", 4, None, [(4, 4, 10), (8, 2, 20)]),
    ];
    let afterwards: [Imported; 2] = [
        ("imported with an old anchor", "", -9, Some(5), [(5, 3, 10), (8, 2, 20)]),
        ("created in the middle", "", 7, None, [(7, 1, 10), (8, 2, 20)]),
    ];
    let seed = async |rows: &[Imported]| {
        let mut instances = Vec::new();
        for (label, name, created, billed, _) in rows {
            let plan = if name.is_empty() { plan.to_string() } else { (*name).to_owned() };
            let instance = Instance::new(org, plan, hour(*created)).label(label).backups("daily");
            let instance = billed.map_or(instance.clone(), |billed| instance.billed(hour(billed)));
            instances.push(fleet.instance(instance).await);
        }
        instances
    };
    let mut instances = seed(&during_the_outage).await;
    fleet.reprice(plan, Some("146.00")).await;
    daemon.bill(hour(8)).await;
    instances.extend(seed(&afterwards).await);
    daemon.bill(hour(10)).await;

    let backups = match daemon.panel.generation {
        Generation::G1 => 0,
        Generation::G2 => 3,
        Generation::G3 => 2,
    };
    for ((label, .., expected), instance) in during_the_outage.iter().chain(&afterwards).zip(instances) {
        let expected = expected.iter().map(|&(start, hours, cents)| charge(start, hours, cents + backups));
        assert_eq!(fleet.charges(instance).await, expected.collect::<Vec<_>>(), "{label}");
        let cycles = fleet.cycles(instance).await;
        for (cycle, base) in cycles.iter().zip([0.1, 0.2]) {
            let parts = (&cycle.metadata["base_hourly_rate"], &cycle.metadata["backup_hourly_rate"]);
            let backups = [0.0, 0.01, 0.02, 0.03][usize::try_from(backups).expect("a few cents")];
            assert_eq!(parts, (&json!(base), &json!(backups)), "{label}");
        }
    }
    assert_sound(db).await;
}

/// The panel deletes a plan and creates it again under its id: what was seen of it stays.
async fn recreated_plan_keeps_seen_prices(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly("73.00")).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;
    db.execute(&format!("DELETE FROM vps_plans WHERE id = '{plan}'")).await;
    daemon.bill(hour(2)).await;
    let again = fleet.plan(Plan::monthly("146.00")).await;
    db.execute(&format!("UPDATE vps_plans SET id = '{plan}' WHERE id = '{again}'")).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;

    daemon.bill(hour(3)).await;
    daemon.bill(hour(4)).await;

    assert_eq!(fleet.charges(instance).await, [charge(0, 3, 10), charge(3, 1, 20)]);
    assert_sound(db).await;
}

async fn adopted_instance_pays_hourly_prices(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly("73.00")).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(2)).await;
    fleet.reprice(plan, Some("146.00")).await;
    daemon.bill(hour(8)).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(-9)).billed(hour(1))).await;

    daemon.biller().adopt(true, "ada").await.expect("it is adopted");
    fleet.reprice(plan, Some("219.00")).await;
    daemon.bill(hour(10)).await;

    assert_eq!(fleet.charges(instance).await, [charge(1, 7, 10), charge(8, 2, 20)]);
    assert_sound(db).await;
}

async fn dry_run_records_no_prices(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly("73.00").backup_hourly("0.010000")).await;
    let unpriced = fleet.plan(Plan::unpriced()).await;
    let daemon = Daemon::of(db).await;
    let variants = if db.has_backups() { 3 } else { 1 };
    let preview = daemon.run(Uuid::now_v7(), Mode::DryRun, &Order::by(hour(1))).await.expect("it ends");
    assert_eq!((preview.first_seen_prices.len(), number(db, SEEN).await), (variants, 0), "a dry run");

    // Nothing is due, so no batch would detect it.
    let old = daemon.claim().await;
    for table in ["scheduler_jobs", "scheduler_fencing"] {
        db.execute(&format!("UPDATE {table} SET fencing_token = fencing_token + 1")).await;
    }
    let result = daemon.bill_under(old.fencing_token, hour(1)).await;
    assert!(matches!(result, Err(BillingError::Fenced)), "{result:?}");
    assert_eq!(number(db, SEEN).await, 0, "an overtaken daemon");
    db.execute("UPDATE scheduler_jobs SET holder = NULL").await;

    let bill = daemon.carry_out(&Order::by(hour(1))).await.expect("it ends");
    let first = &bill.first_seen_prices[0];
    assert_eq!(bill.first_seen_prices.len(), variants);
    assert_eq!(
        (first.plan.clone(), first.backups, first.hourly_price.as_str()),
        (plan.to_string(), Backups::None, "0.100000")
    );
    let details = fetch_rows(
        db,
        "SELECT CAST(details AS text) AS d FROM scheduler_runs ORDER BY started_at DESC LIMIT 1",
    );
    let details: String = details.await[0].try_get("", "d").expect("text");
    let details: serde_json::Value = serde_json::from_str(&details).expect("JSON");
    assert_eq!(details["first_seen_prices"]["count"], json!(variants));
    assert_eq!(details["first_seen_prices"]["listed"][0]["hourly_price"], "0.100000");

    let rows = i64::try_from(variants).expect("a few");
    for (price, seen, first) in [(None, 0, 0), (Some("73.00"), 0, 0), (Some("146.00"), rows, 0)] {
        let before = number(db, SEEN).await;
        fleet.reprice(plan, price).await;
        for _ in 0..2 {
            let bill = daemon.carry_out(&Order::by(hour(2))).await.expect("it ends");
            assert_eq!(bill.first_seen_prices.len(), first, "{price:?}");
        }
        assert_eq!(number(db, SEEN).await - before, seen, "{price:?}");
    }
    fleet.reprice(unpriced, Some("0.00")).await;
    let bill = daemon.carry_out(&Order::by(hour(3))).await.expect("it ends");
    assert!(bill.first_seen_prices.iter().all(|price| price.plan == unpriced.to_string()));
    assert_eq!(bill.first_seen_prices.len(), 1, "free backups have no separate price");
}

on_every_database!(
    hours_before_price_change_keep_old_price,
    instances_without_meter_pay_hourly_prices,
    dry_run_records_no_prices,
);
on_each_kind!(
    arrears_keep_price_of_each_hour,
    deleted_instance_pays_last_seen_prices,
    missing_price_keeps_seen_prices,
    plan_change_applies_from_then_on,
    recreated_plan_keeps_seen_prices,
    adopted_instance_pays_hourly_prices,
);
