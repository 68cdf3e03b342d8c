//! Instances that the panel deleted while they had hours to be charged: recorded once, and never silently dropped.

use billing_jobs::{
    billing::Mode,
    currency::Currency,
    uncharged::{Closed, Debt, uncharged},
};
use billing_test_support::{Db, Fleet, HoldRow, Instance, Plan, on_variants};
use sea_orm::TransactionTrait as _;
use uuid::Uuid;

use super::{
    CENT, Daemon, Order, TEN_CENTS_AN_HOUR, assert_sound, charged, contents, hour, minute, number, usd,
};

/// What the run at `minutes` closed as `instance_deleted`: instances, hours, amount, and those without a known price.
async fn lost(daemon: &Daemon, minutes: i64) -> Option<(u64, u64, i64, u64)> {
    let bill = daemon.carry_out(&Order::by(minute(minutes))).await.expect("the run finishes");
    let txn = daemon.db.begin().await.expect("a transaction begins");
    let closed = uncharged(&txn, Closed::By(minute(minutes).timestamp_micros())).await.expect("readable");
    txn.commit().await.expect("nothing was written");
    assert_eq!(bill.uncharged, closed, "the run and its holds agree");
    let figures = |debt: &Debt| (debt.instances, debt.hours, debt.amounts.of(Currency::USD).0, debt.unpriced);
    match &closed[..] {
        [] => None,
        [one] => {
            assert_eq!(one.reason, "instance_deleted");
            Some(figures(&one.debt))
        }
        several => panic!("{several:?}"),
    }
}

async fn only_hold(fleet: &Fleet<'_>, instance: Uuid) -> (String, i64, Option<i64>, bool) {
    let holds = fleet.holds(instance).await;
    let [HoldRow { reason, hours, amount, open, .. }] = &holds[..] else { panic!("not one hold: {holds:?}") };
    (reason.clone(), hours.expect("known"), *amount, *open)
}

/// Charged up to 2:00, and deleted before the run at some minute.
async fn deleted_instance_is_recorded_with_uncharged_hours(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let org = fleet.wallet("100.00").await;
    let stays = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    for (day, minutes, expected) in
        [(0, 59, None), (1, 60, Some((1, 1, 10 * CENT, 0))), (2, 185, Some((1, 3, 30 * CENT, 0)))]
    {
        let charged_to = 24 * 60 * day + 120;
        let gone = fleet.instance(Instance::new(org, plan, minute(charged_to - 120))).await;
        daemon.bill(minute(charged_to)).await;
        fleet.delete(gone).await;
        let order = Order::by(minute(charged_to + minutes));
        let before = contents(db).await;
        let preview = daemon.run(Uuid::now_v7(), Mode::DryRun, &order).await;
        let preview = preview.expect("a dry run finishes").uncharged;
        assert_eq!(preview.first().map(|one| one.debt.hours), expected.map(|(_, hours, ..)| hours));
        assert_eq!(contents(db).await, before, "a dry run writes nothing at all");
        assert_eq!(
            lost(&daemon, charged_to + minutes).await,
            expected,
            "{minutes} min after its last charge"
        );
        let later = lost(&daemon, charged_to + minutes + 1).await;
        let Some((_, hours, amount, _)) = expected else {
            assert_eq!(later, Some((1, 1, 10 * CENT, 0)), "an hour after its last charge");
            continue;
        };
        assert_eq!(later, None, "it is recorded once");
        let hours = i64::try_from(hours).expect("few");
        let hold = ("instance_deleted".to_owned(), hours, Some(amount), false);
        assert_eq!(only_hold(&fleet, gone).await, hold);
    }
    assert_eq!(charged(&fleet, stays).await.1, 53, "what exists is charged as ever");
    assert_sound(db).await;
}

/// A hold of a deleted instance stays while it can be charged, and is closed with an entry in the audit log where it never can.
async fn deleted_instance_hold_stays_or_closes(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let (poor, rich) = (fleet.wallet("0.00").await, fleet.wallet("100.00").await);
    let owes = fleet.instance(Instance::new(poor, plan, hour(0))).await;
    let unpriced = fleet.instance(Instance::new(rich, "unheard-of", hour(0))).await;
    let daemon = Daemon::of(db).await;
    assert_eq!(lost(&daemon, 3 * 60).await, None);
    fleet.delete(owes).await;
    fleet.delete(unpriced).await;

    // Three hours of one have no price. The other had one more hour since it was last seen.
    assert_eq!(lost(&daemon, 4 * 60).await, Some((2, 4, 10 * CENT, 1)));
    assert_eq!(only_hold(&fleet, unpriced).await, ("unknown_plan".to_owned(), 3, None, false));
    let holds = fleet.holds(owes).await;
    let holds: Vec<_> = holds.iter().map(|hold| (hold.reason.as_str(), hold.hours, hold.open)).collect();
    assert_eq!(holds, [("insufficient_balance", Some(3), true), ("instance_deleted", Some(1), false)]);

    fleet.top_up(poor, "10.00").await;
    assert_eq!(lost(&daemon, 9 * 60).await, None, "its deletion is recorded already");
    assert_eq!(charged(&fleet, owes).await, (1, 3, usd("0.30")));
    assert_eq!(lost(&daemon, 20 * 60).await, None);
    assert_eq!(number(db, "SELECT count(*) FROM billing_holds WHERE closed_at IS NULL").await, 0);
    assert_sound(db).await;
}

/// The panel may restore an instance with its id: it is charged from where its charges end, and may be deleted again.
async fn restored_instance_is_charged_until_deleted_again(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let org = fleet.wallet("100.00").await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(2)).await;
    db.execute("CREATE TABLE kept AS SELECT * FROM vps_instances; DELETE FROM vps_instances").await;
    assert_eq!(lost(&daemon, 4 * 60).await, Some((1, 2, 20 * CENT, 0)));
    db.execute("INSERT INTO vps_instances SELECT * FROM kept").await;
    assert_eq!(lost(&daemon, 5 * 60).await, None);
    assert_eq!(charged(&fleet, instance).await, (2, 5, usd("0.50")));
    fleet.delete(instance).await;
    assert_eq!(lost(&daemon, 8 * 60).await, Some((1, 3, 30 * CENT, 0)));
    assert_sound(db).await;
}

/// Its meter exists since the adoption, and no run has seen it.
async fn instance_deleted_after_adoption_is_recorded(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let org = fleet.wallet("100.00").await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.biller().adopt(true, "ada").await.expect("it is adopted");
    fleet.delete(instance).await;
    assert_eq!(lost(&daemon, 9 * 60).await, Some((1, 9, 90 * CENT, 0)));
    assert_sound(db).await;
}

on_each_kind!(deleted_instance_is_recorded_with_uncharged_hours, deleted_instance_hold_stays_or_closes,);
on_variants!(restored_instance_is_charged_until_deleted_again: sqlite, g1_owner);
on_variants!(instance_deleted_after_adoption_is_recorded: sqlite, g1_role);
