//! A price that changes counts from the hour in which it is first seen; hours that ended before keep the old one.

use e2e::{ChargeRow, Db, Fleet, Instance, Plan, on_every_database};

use super::{CENT, Daemon, assert_sound, charged, hold_of, hour, minute, usd};

fn charge(from: i64, hours: i64, cents_an_hour: i64) -> ChargeRow {
    ChargeRow { start: hour(from), hours, amount: hours * cents_an_hour * CENT }
}

/// B13
async fn hours_that_ended_before_a_new_price_was_seen_keep_the_old_one(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly("73.00")).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(2)).await;
    fleet.reprice(plan, Some("146.00")).await;

    // In the middle of the fifth hour: two have ended, and the one under way is the first at the new price.
    daemon.bill(minute(4 * 60 + 30)).await;
    daemon.bill(hour(6)).await;

    assert_eq!(fleet.charges(instance).await, [charge(0, 2, 10), charge(2, 2, 10), charge(4, 2, 20)]);
    let cycles = fleet.cycles(instance).await;
    let rates: Vec<_> = cycles.iter().map(|cycle| (cycle.hourly_rate, cycle.total)).collect();
    assert_eq!(rates, [(10 * CENT, 20 * CENT), (10 * CENT, 20 * CENT), (20 * CENT, 40 * CENT)]);
    assert_sound(db).await;
}

/// B13
async fn arrears_keep_the_price_of_each_hour(db: &Db) {
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

/// B11 and B13
async fn a_deleted_instance_pays_each_hour_at_the_price_that_was_seen(db: &Db) {
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

/// B13
async fn a_price_that_was_missing_for_a_while_does_not_reprice_what_was_seen_before(db: &Db) {
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
async fn an_instance_that_changes_its_plan_pays_the_new_one_from_then_on(db: &Db) {
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

on_every_database!(hours_that_ended_before_a_new_price_was_seen_keep_the_old_one);
on_each_kind!(
    arrears_keep_the_price_of_each_hour,
    a_deleted_instance_pays_each_hour_at_the_price_that_was_seen,
    a_price_that_was_missing_for_a_while_does_not_reprice_what_was_seen_before,
    an_instance_that_changes_its_plan_pays_the_new_one_from_then_on,
);
