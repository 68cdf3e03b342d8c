//! Instances that change their organization: hours up to the last run that saw the previous one stay with it.

use billing_jobs::uncharged::Uncharged;
use billing_test_support::{Db, Fleet, Instance, Plan, on_every_database};
use uuid::Uuid;

use super::{CENT, Daemon, Order, TEN_CENTS_AN_HOUR, assert_sound, charged, hour, number, usd};

/// The newest hold of the instance: reason, hours, amount, whether it is open.
async fn newest_hold(fleet: &Fleet<'_>, instance: Uuid) -> (String, Option<i64>, Option<i64>, bool) {
    let hold = fleet.holds(instance).await.pop().expect("it was held");
    (hold.reason, hold.hours, hold.amount, hold.open)
}

/// The hours of each charge, and after how many hours it begins.
async fn periods(fleet: &Fleet<'_>, instance: Uuid) -> Vec<(i64, i64)> {
    let charges = fleet.charges(instance).await;
    charges.iter().map(|charge| ((charge.start - hour(0)).num_hours(), charge.hours)).collect()
}

/// One organization whose batch comes before that of the new one, and one whose batch comes after it.
async fn arrears_stay_with_previous_organization(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let mut organizations = Vec::new();
    for _ in 0..3 {
        organizations.push(fleet.wallet("0.25").await);
    }
    organizations.sort_unstable();
    let [before, new, after] = organizations[..] else { unreachable!("there are three") };
    let (one, other) = (
        fleet.instance(Instance::new(before, plan, hour(0))).await,
        fleet.instance(Instance::new(after, plan, hour(0))).await,
    );
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(5)).await;
    for instance in [one, other] {
        let held = ("insufficient_balance".to_owned(), Some(3), Some(usd("0.30")), true);
        assert_eq!(newest_hold(&fleet, instance).await, held);
        fleet.transfer(instance, new).await;
    }
    fleet.top_up(new, "9.75").await;
    fleet.top_up(before, "0.10").await;
    assert_eq!(daemon.preview(&Order::by(hour(8))).await.hours, 1, "what previous organizations can pay");

    let bill = daemon.carry_out(&Order::by(hour(8))).await.expect("the run finishes");

    let [Uncharged { reason, debt }] = &bill.uncharged[..] else { panic!("{:?}", bill.uncharged) };
    assert_eq!(reason, "instance_transferred");
    assert_eq!((debt.instances, debt.hours, debt.amounts.to_string()), (2, 5, "0.50 USD".to_owned()));
    assert_eq!(periods(&fleet, one).await, [(0, 2), (2, 1), (5, 3)]);
    assert_eq!(periods(&fleet, other).await, [(0, 2), (5, 3)]);
    let closed = |hours, amount| ("instance_transferred".to_owned(), Some(hours), Some(usd(amount)), false);
    assert_eq!(newest_hold(&fleet, one).await, closed(2, "0.20"));
    assert_eq!(newest_hold(&fleet, other).await, closed(3, "0.30"));
    let balances = [fleet.balance(before).await, fleet.balance(new).await, fleet.balance(after).await];
    assert_eq!(balances, [5 * CENT, usd("9.40"), 5 * CENT]);
    assert_eq!(fleet.last_billed_at(one).await, Some(hour(8)));
    assert_sound(db).await;

    let bill = daemon.carry_out(&Order::by(hour(9))).await.expect("the run finishes");
    assert_eq!((bill.totals.hours, bill.uncharged), (2, Vec::new()));
    assert_eq!(fleet.balance(new).await, usd("9.20"));
    assert_sound(db).await;
}

/// The new organization pays from its first hour, and cannot either: a separate hold.
async fn new_organization_owes_only_its_own_hours(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let (without_wallet, poor) = (fleet.organization().await, fleet.wallet("0.05").await);
    let instance = fleet.instance(Instance::new(without_wallet, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(3)).await;
    fleet.transfer(instance, poor).await;

    daemon.bill(hour(5)).await;

    let holds = fleet.holds(instance).await;
    let holds: Vec<_> =
        holds.iter().map(|hold| (&*hold.reason, hold.hours, hold.amount, hold.open)).collect();
    let (three, two) = (Some(usd("0.30")), Some(usd("0.20")));
    assert_eq!(
        holds,
        [("instance_transferred", Some(3), three, false), ("insufficient_balance", Some(2), two, true)]
    );
    fleet.top_up(poor, "1.00").await;
    daemon.bill(hour(6)).await;
    assert_eq!(periods(&fleet, instance).await, [(3, 3)]);
    assert_sound(db).await;
}

/// Hours of an unknown plan are closed with an unknown amount, and are not the new organization's.
async fn unpriced_hours_stay_with_previous_organization(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let (previous, new) = (fleet.wallet("10.00").await, fleet.wallet("10.00").await);
    let instance = fleet.instance(Instance::new(previous, "unheard-of", hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(3)).await;
    fleet.transfer(instance, new).await;
    db.execute(&format!("UPDATE vps_instances SET plan_id = '{plan}'")).await;

    daemon.bill(hour(5)).await;

    assert_eq!(
        newest_hold(&fleet, instance).await,
        ("instance_transferred".to_owned(), Some(3), None, false)
    );
    assert_eq!(periods(&fleet, instance).await, [(3, 2)]);
    assert_eq!(fleet.balance(new).await, usd("9.80"));
    assert_sound(db).await;
}

/// The instance was held before a run could price it, and so has no meter; the runs saw what its plan costs.
async fn seen_prices_apply_without_meter(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let (previous, new) = (fleet.wallet("0.25").await, fleet.wallet("10.00").await);
    let instance = fleet.instance(Instance::new(previous, plan, hour(0))).await;
    let created = |at: &str| format!("UPDATE vps_instances SET created_at = '{at}'");
    db.execute(&created("1999-01-01T00:00:00+00:00")).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(3)).await;
    assert_eq!(newest_hold(&fleet, instance).await, ("invalid_time".to_owned(), None, None, true));
    fleet.transfer(instance, new).await;
    db.execute(&created(&hour(0).to_rfc3339())).await;
    // A price that no run has seen is not the price of those hours.
    fleet.reprice(plan, Some("146.00")).await;

    daemon.bill(hour(5)).await;

    assert_eq!(periods(&fleet, instance).await, [(0, 2), (3, 2)]);
    let closed = ("instance_transferred".to_owned(), Some(1), Some(usd("0.10")), false);
    assert_eq!(newest_hold(&fleet, instance).await, closed);
    assert_eq!(fleet.balance(previous).await, 5 * CENT);
    assert_sound(db).await;
}

/// Without arrears there is nothing to settle: the new organization pays from where the charges end.
async fn paid_instance_is_transferred_without_a_hold(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let (previous, new) = (fleet.wallet("10.00").await, fleet.wallet("10.00").await);
    let instance = fleet.instance(Instance::new(previous, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(5)).await;
    fleet.transfer(instance, new).await;
    daemon.bill(hour(8)).await;
    assert_eq!(charged(&fleet, instance).await, (2, 8, usd("0.80")));
    assert_eq!([fleet.balance(previous).await, fleet.balance(new).await], [usd("9.50"), usd("9.70")]);
    assert_eq!(number(db, "SELECT count(*) FROM billing_holds").await, 0);
    assert_sound(db).await;
}

on_every_database!(arrears_stay_with_previous_organization);
on_each_kind!(
    new_organization_owes_only_its_own_hours,
    unpriced_hours_stay_with_previous_organization,
    seen_prices_apply_without_meter,
    paid_instance_is_transferred_without_a_hold,
);
