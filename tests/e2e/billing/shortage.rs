//! Too little money: what the wallet covers is charged, the rest waits in one hold, and deletion forgives nothing.

use billing_jobs::{currency::Currency, money::Money};
use billing_test_support::{ChargeRow, Db, Fleet, HoldRow, Instance, Plan, on_every_database};
use sea_orm::DbBackend;
use uuid::Uuid;

use super::{
    CENT, Daemon, Order, TEN_CENTS_AN_HOUR, assert_sound, charged, hold_of, hour, minute, number, usd,
};

async fn wallet_pays_oldest_instance_first(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("0.55").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let young = fleet.instance(Instance::new(org, plan, minute(1))).await;
    let old = fleet.instance(Instance::new(org, plan, hour(0))).await;

    let totals = Daemon::of(db).await.bill(minute(241)).await;

    assert_eq!((totals.charged, totals.hours, totals.held), (2, 5, 1));
    assert_eq!(charged(&fleet, old).await, (1, 4, 40 * CENT));
    assert_eq!(fleet.holds(old).await, []);
    assert_eq!(charged(&fleet, young).await, (1, 1, 10 * CENT));
    let hold = hold_of(&fleet, young).await;
    assert_eq!(
        (hold.reason.as_str(), hold.hours, hold.amount),
        ("insufficient_balance", Some(3), Some(30 * CENT))
    );
    assert_eq!(hold.detail, "the wallet holds 0.05 USD and does not cover the next hour");
    assert_eq!(fleet.balance(org).await, 5 * CENT);
    assert_eq!(fleet.last_billed_at(young).await, Some(minute(61)));
    assert_sound(db).await;
}

async fn empty_wallet_leaves_one_hold(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("0.09").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;

    for hours in 1..=5 {
        assert_eq!(daemon.bill(hour(hours)).await.held, 1);
        let hold = hold_of(&fleet, instance).await;
        assert_eq!((hold.hours, hold.amount), (Some(hours), Some(10 * CENT * hours)));
    }
    assert_eq!(fleet.ledger(org).await, []);
    assert_eq!(fleet.cycles(instance).await, []);
    assert_eq!(fleet.last_billed_at(instance).await, None);

    fleet.top_up(org, "0.25").await;
    daemon.bill(hour(6)).await;
    assert_eq!(charged(&fleet, instance).await, (1, 3, 30 * CENT), "what the wallet covers, at the next run");
    assert_eq!(hold_of(&fleet, instance).await.hours, Some(3));

    fleet.top_up(org, "10.00").await;
    daemon.bill(hour(6)).await;
    assert_eq!(charged(&fleet, instance).await, (2, 6, 60 * CENT));
    assert!(
        matches!(&fleet.holds(instance).await[..], [HoldRow { open: false, .. }]),
        "and the hold is closed"
    );
    assert_eq!(fleet.balance(org).await, usd("9.74"));
    assert_eq!(number(db, "SELECT count(*) FROM payment_transactions WHERE status <> 'completed'").await, 0);
    assert_sound(db).await;
}

async fn negative_wallet_pays_nothing(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("-3.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let free = fleet.plan(Plan::monthly("0.00")).await;
    let free = fleet.instance(Instance::new(org, free, hour(0))).await;

    Daemon::of(db).await.bill(hour(2)).await;

    assert_eq!(hold_of(&fleet, instance).await.reason, "insufficient_balance");
    assert_eq!(charged(&fleet, free).await, (1, 2, 0), "what is free needs no money");
    assert_eq!(fleet.balance(org).await, usd("-3.00"));
    assert_sound(db).await;
}

async fn open_hours(fleet: &Fleet<'_>, instance: Uuid) -> i64 {
    fleet.holds(instance).await.iter().filter(|hold| hold.open).filter_map(|hold| hold.hours).sum()
}

async fn catch_up_limit_counts_unseen_hours(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let unpriced = fleet.plan(Plan::unpriced()).await;
    let (poor, rich) = (fleet.wallet("0.00").await, fleet.wallet("1000.00").await);
    let unpaid = fleet.instance(Instance::new(poor, plan, hour(0))).await;
    let left = fleet.instance(Instance::new(poor, plan, hour(0))).await;
    let priced_late = fleet.instance(Instance::new(rich, unpriced, hour(0))).await;
    let daemon = Daemon::of(db).await;
    for run in 1..=80 {
        daemon.bill(hour(run)).await;
    }
    for instance in [unpaid, left] {
        let hold = hold_of(&fleet, instance).await;
        assert_eq!(
            (hold.reason.as_str(), hold.hours),
            ("insufficient_balance", Some(80)),
            "arrears at any age"
        );
    }
    fleet.reprice(unpriced, Some(TEN_CENTS_AN_HOUR)).await;

    fleet.top_up(poor, "8.10").await;
    daemon.bill(hour(81)).await;
    assert_eq!(
        charged(&fleet, unpaid).await.1 + charged(&fleet, left).await.1,
        81,
        "80 h without money, then a top-up"
    );
    assert_eq!(hold_of(&fleet, priced_late).await.reason, "catch_up_limit", "80 h without a price");

    // An outage of 80 h, after which only its hours are known.
    let seen = fleet.instance(Instance::new(rich, plan, hour(81))).await;
    fleet.top_up(poor, "100.00").await;
    for run in [161, 162] {
        daemon.bill(hour(run)).await;
        assert_eq!(hold_of(&fleet, seen).await.reason, "catch_up_limit", "80 h of outage, and an hour later");
        let held = [unpaid, left].map(|instance| fleet.holds(instance));
        let [one, two] = held;
        let open: Vec<_> = one.await.into_iter().chain(two.await).filter(|hold| hold.open).collect();
        assert!(open.iter().all(|hold| hold.reason == "catch_up_limit"), "{open:?}");
        assert_eq!(open.len(), 2, "80 h without money, then 80 h of outage");
    }
    let approved = Order::approved_by(hour(162));
    daemon.carry_out(&approved).await.expect("an approval releases them");
    for instance in [unpaid, left] {
        assert_eq!(charged(&fleet, instance).await.1, 162);
    }
    assert_sound(db).await;
}

async fn free_instance_needs_no_wallet_or_approval(db: &Db) {
    let fleet = Fleet::new(db);
    let (free, plan) =
        (fleet.plan(Plan::monthly("0.00")).await, fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await);
    let (none, two) = (fleet.organization().await, fleet.wallet("1.00").await);
    fleet.wallet_of(two, "2.00").await;
    let below_zero = fleet.wallet("-5.00").await;
    let mut instances = Vec::new();
    for org in [none, two, below_zero] {
        instances.push(fleet.instance(Instance::new(org, free, hour(0))).await);
    }
    let paying = fleet.instance(Instance::new(none, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;

    let totals = daemon.bill(hour(100)).await;

    assert_eq!((totals.charged, totals.hours, totals.held), (3, 300, 1));
    assert!(totals.amounts().iter().all(|(_, amount)| amount.0 == 0), "{totals:?}");
    assert_eq!(
        totals.currencies.main(),
        Some((Currency::USD, Money(0))),
        "the wallet's, though two have none"
    );
    for instance in instances {
        assert_eq!(charged(&fleet, instance).await, (1, 100, 0));
        assert_eq!(fleet.last_billed_at(instance).await, Some(hour(100)));
        assert_eq!(fleet.holds(instance).await, []);
    }
    assert_eq!(hold_of(&fleet, paying).await.reason, "no_wallet");
    assert_eq!(number(db, "SELECT count(*) FROM payment_transactions").await, 0);
    assert_sound(db).await;
}

async fn deleted_instance_is_charged_until_last_seen(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("0.20").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0)).label("gone")).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(2)).await;
    daemon.bill(hour(7)).await;
    assert_eq!(hold_of(&fleet, instance).await.hours, Some(5));

    fleet.delete(instance).await;
    daemon.bill(hour(9)).await;
    assert_eq!(open_hours(&fleet, instance).await, 5, "nothing is owed for the time since it was last seen");

    fleet.top_up(org, "0.35").await;
    daemon.bill(hour(20)).await;
    assert_eq!(open_hours(&fleet, instance).await, 2);
    fleet.top_up(org, "10.00").await;
    daemon.bill(hour(30)).await;
    daemon.bill(hour(40)).await;

    let rows = [(0, 2), (2, 3), (5, 2)];
    let expected =
        rows.map(|(start, hours)| ChargeRow { start: hour(start), hours, amount: hours * 10 * CENT });
    assert_eq!(fleet.charges(instance).await, expected, "its history is ours to keep");
    let debits = fleet.ledger(org).await;
    let mut debits: Vec<_> =
        debits.iter().filter(|row| row.amount < 0).map(|row| row.description.as_str()).collect();
    debits.sort_unstable();
    let expected = [
        "VPS Hourly Billing - gone (2h)",
        "VPS Hourly Billing - gone (2h)",
        "VPS Hourly Billing - gone (3h)",
    ];
    assert_eq!(debits, expected);
    // PostgreSQL deletes the cycles together with the instance.
    let cycles = i64::from(db.backend() == DbBackend::Sqlite);
    assert_eq!(number(db, "SELECT count(*) FROM vps_billing_cycles").await, cycles);
    assert_eq!(open_hours(&fleet, instance).await, 0);
    assert_eq!(fleet.balance(org).await, usd("9.85"));
    assert_sound(db).await;
}

async fn deleted_instance_without_arrears_leaves_history(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("10.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let paid = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let never_priced = fleet.instance(Instance::new(org, "unheard-of", hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(2)).await;

    fleet.delete(paid).await;
    fleet.delete(never_priced).await;
    let totals = daemon.bill(hour(9)).await;

    assert_eq!((totals.charged, totals.held), (0, 0));
    assert_eq!(charged(&fleet, paid).await, (1, 2, 20 * CENT));
    assert_eq!(charged(&fleet, never_priced).await, (0, 0, 0), "what it would have cost is not known");
    assert!(!fleet.holds(never_priced).await[0].open);
    assert_sound(db).await;
}

on_every_database!(
    wallet_pays_oldest_instance_first,
    empty_wallet_leaves_one_hold,
    deleted_instance_is_charged_until_last_seen,
);
on_each_kind!(
    catch_up_limit_counts_unseen_hours,
    free_instance_needs_no_wallet_or_approval,
    negative_wallet_pays_nothing,
    deleted_instance_without_arrears_leaves_history,
);
