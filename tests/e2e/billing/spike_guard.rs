//! A run that would charge far more than usual charges nothing until an operator approves it.

use billing_jobs::{
    billing::{
        BillingError, BillingSettings, CeilingExceeded, CurrencyTotals, Scope, Spike, approve_catch_up,
        spike_guard::{PendingSpike, approve, pending_spike},
    },
    money::Money,
};
use billing_test_support::{Db, Fleet, Instance, Plan};
use sea_orm::DbBackend;
use uuid::Uuid;

use super::{
    Daemon, Order, TEN_CENTS_AN_HOUR, Then, add_instances, assert_sound, hour, in_usd, money, number,
    trigger, usd,
};

const CHARGES: &str = "SELECT count(*) FROM billing_charges";

async fn price(db: &Db, cents: i64) {
    db.execute(&format!("UPDATE vps_plans SET base_price = {}", money(db, cents))).await;
}

/// The amount that the run announced and did not charge.
async fn spike(db: &Db, daemon: &Daemon, order: &Order<'_>) -> CurrencyTotals {
    let before = number(db, CHARGES).await;
    let result = daemon.carry_out(order).await;
    let Err(BillingError::Spike(Spike { excesses })) = result else { panic!("no spike: {result:?}") };
    assert_eq!(number(db, CHARGES).await, before, "nothing was charged");
    assert_eq!(excesses.len(), 1, "in one currency");
    excesses[0].due
}

/// A hundred instances at ten cents an hour of one wallet with this balance. Returns the organization and the plan.
async fn hundred_instances(db: &Db, balance: &str) -> (Uuid, Uuid) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let org = fleet.wallet(balance).await;
    add_instances(db, org, plan, 100).await;
    (org, plan)
}

/// Approves what the run announced.
async fn approve_all(daemon: &Daemon) {
    let announced = waiting(daemon).await.expect("it was announced");
    for excess in announced.excesses {
        approve(&daemon.db, announced.id, excess, "ada").await.expect("it is in the audit log");
    }
}

async fn waiting(daemon: &Daemon) -> Option<PendingSpike> {
    pending_spike(&daemon.db).await.expect("the record is readable")
}

async fn corrected_price_error_leaves_no_trace(db: &Db) {
    hundred_instances(db, "10000.00").await;
    let daemon = Daemon::of(db).await;
    assert_eq!(in_usd(&daemon.bill(hour(1)).await), usd("10.00"), "there is nothing to compare with");
    price(db, 73_000).await;
    for hours in 2..5 {
        let sum = spike(db, &daemon, &Order::by(hour(hours))).await;
        assert_eq!(
            sum,
            CurrencyTotals {
                charges: 100,
                amount: Money(usd("100.00") * (hours - 1)),
                hours: 100 * (hours - 1)
            }
        );
        assert_eq!(waiting(&daemon).await.map(|waiting| waiting.excesses[0].due), Some(sum));
    }
    price(db, 7_300).await;
    assert_eq!(
        in_usd(&daemon.bill(hour(5)).await),
        usd("40.00"),
        "no hour at the wrong price, and none lost"
    );
    assert_eq!(number(db, "SELECT count(*) FROM billing_seen_rates WHERE rate > 73000000").await, 0);
    assert_sound(db).await;
}

async fn only_approved_amount_is_charged(db: &Db) {
    hundred_instances(db, "100000.00").await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;
    price(db, 73_000).await;
    spike(db, &daemon, &Order::by(hour(2))).await;
    approve_all(&daemon).await;
    assert_eq!(waiting(&daemon).await, None);

    price(db, 730_000).await;
    spike(db, &daemon, &Order::by(hour(2))).await;
    price(db, 73_000).await;
    // Instances that were created meanwhile are approved at the same price.
    assert_eq!(in_usd(&daemon.bill(hour(4)).await), usd("30.00"), "hours of before the new price was seen");
    assert_eq!(in_usd(&daemon.bill(hour(5)).await), usd("100.00"));

    // A day later it is forgotten; what was charged since is not.
    db.execute(match db.backend() {
        DbBackend::Sqlite => {
            "DROP TRIGGER scheduler_audit_log_no_update;
             UPDATE scheduler_audit_log SET at = at - 25 * 3600000000"
        }
        _ => {
            "ALTER TABLE scheduler_audit_log DISABLE TRIGGER ALL;
             UPDATE scheduler_audit_log SET at = at - interval '25 hours'"
        }
    })
    .await;
    assert_eq!(in_usd(&daemon.bill(hour(6)).await), usd("100.00"));
    db.execute("DELETE FROM scheduler_runs WHERE CAST(details AS text) NOT LIKE '%10.00%'").await;
    spike(db, &daemon, &Order::by(hour(7))).await;
}

async fn more_hours_or_instances_are_no_spike(db: &Db) {
    let (org, plan) = hundred_instances(db, "100000.00").await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;
    assert_eq!(in_usd(&daemon.bill(hour(31)).await), usd("300.00"), "an outage of thirty hours");
    add_instances(db, org, plan, 400).await;
    assert_eq!(in_usd(&daemon.bill(hour(32)).await), usd("1290.00"), "five times the fleet");
    price(db, 14_600).await;
    assert_eq!(in_usd(&daemon.bill(hour(33)).await), usd("50.00"));
    assert_eq!(in_usd(&daemon.bill(hour(34)).await), usd("100.00"), "twice the price");
}

/// The price of now is usual, and the one that runs saw in the hours of an imported instance was not.
async fn spike_counts_prices_seen_before(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100000.00").await;
    let cheap = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let dear = fleet.plan(Plan::monthly("73000.00")).await;
    add_instances(db, org, cheap, 10).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;
    fleet.reprice(dear, Some(TEN_CENTS_AN_HOUR)).await;
    daemon.bill(hour(2)).await;
    fleet.instance(Instance::new(org, dear, hour(0))).await;

    let sum = spike(db, &daemon, &Order::by(hour(3))).await;

    assert_eq!(sum, CurrencyTotals { charges: 12, amount: Money(usd("201.10")), hours: 13 });
    approve_all(&daemon).await;
    assert_eq!(in_usd(&daemon.bill(hour(3)).await), usd("201.10"));
    assert_sound(db).await;
}

/// Unpaid hours are many and cheap: averaged with them, expensive hours would look usual.
async fn spike_is_detected_despite_arrears(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let (rich, poor) = (fleet.wallet("100000.00").await, fleet.wallet("0.00").await);
    add_instances(db, rich, plan, 100).await;
    add_instances(db, poor, plan, 100).await;
    let daemon = Daemon::of(db).await;
    for hours in [1, 30, 60] {
        daemon.bill(hour(hours)).await;
    }
    let dear = fleet.plan(Plan::monthly("730.00")).await;
    db.execute(&format!("UPDATE vps_instances SET plan_id = '{dear}' WHERE organization_id = '{rich}'"))
        .await;
    assert_eq!(spike(db, &daemon, &Order::by(hour(61))).await.hours, 100);
}

/// The statement that bounds a run knows no approvals: what they add is decided one by one.
async fn approved_catch_up_counts_towards_spike(db: &Db) {
    hundred_instances(db, "10000.00").await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100000.00").await;
    let dear = fleet.plan(Plan::monthly("7300.00")).await;
    fleet.instance(Instance::new(org, dear, hour(-100))).await;
    assert_eq!(daemon.bill(hour(2)).await.held, 1, "beyond the limit, so not part of the run");
    let scope = Scope { organizations: vec![org.to_string()], ..Scope::default() };
    approve_catch_up(&daemon.db, &scope, "ada", Some("outage")).await.expect("it is recorded");
    let sum = spike(db, &daemon, &Order::by(hour(3))).await;
    assert_eq!((sum.amount, sum.hours), (Money(usd("1040.00")), 203));
    approve_all(&daemon).await;
    assert_eq!(in_usd(&daemon.bill(hour(3)).await), usd("1040.00"));
    assert_sound(db).await;
}

/// What is decided later than the sum is held against it.
async fn run_stops_at_amount_due_at_start(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let first = fleet.wallet("100.00").await;
    let daemon = {
        let settings = BillingSettings {
            spike_floor: Money(1),
            batch_instances: Some(1),
            connections: Some(1),
            ..BillingSettings::default()
        };
        Daemon::with(db, settings).await
    };
    fleet.instance(Instance::new(first, plan, hour(0))).await;
    daemon.bill(hour(1)).await;
    let dear = fleet.plan(Plan::monthly("7300.00")).await;
    for _ in 0..2 {
        let org = fleet.wallet("100.00").await;
        fleet.instance(Instance::new(org, plan, hour(1))).await;
    }
    let change = format!("UPDATE vps_instances SET plan_id = '{dear}' WHERE last_billed_at IS NULL");
    trigger(db, "meanwhile", "AFTER INSERT ON billing_batches", "true", &Then::Run(&change)).await;
    let result = daemon.carry_out(&Order::by(hour(2))).await;
    let Err(BillingError::CeilingExceeded(CeilingExceeded { charged, .. })) = result else {
        panic!("{result:?}")
    };
    assert!(charged.0 <= usd("0.20"), "{charged}");
    assert_eq!(number(db, "SELECT sum(amount) FROM billing_charges").await, usd("0.10") + charged.0);
    assert_sound(db).await;
}

async fn zero_spike_factor_charges_everything(db: &Db) {
    hundred_instances(db, "10000.00").await;
    let daemon = Daemon::with(db, BillingSettings { spike_factor: 0, ..BillingSettings::default() }).await;
    daemon.bill(hour(1)).await;
    price(db, 73_000).await;
    daemon.bill(hour(2)).await;
    assert_eq!(in_usd(&daemon.bill(hour(3)).await), usd("100.00"));
}

/// A currency is compared with its own recent runs, and approved by its own.
async fn spikes_are_judged_by_currency(db: &Db) {
    let (_, plan) = hundred_instances(db, "10000.00").await;
    let fleet = Fleet::new(db);
    let euros = fleet.wallet("10000.00").await;
    db.execute(&format!("UPDATE wallets SET currency = 'EUR' WHERE organization_id = '{euros}'")).await;
    let dear = fleet.plan(Plan::monthly("73000.00")).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;

    // Nothing was charged in euros lately, so there is nothing to compare with.
    fleet.instance(Instance::new(euros, dear, hour(0))).await;
    let totals = daemon.bill(hour(2)).await;
    assert_eq!(totals.amounts().to_string(), "200.00 EUR, 10.00 USD");
    // An hour of a euro wallet costs far more than one of a dollar wallet, and that is usual.
    assert_eq!(daemon.bill(hour(3)).await.amounts().to_string(), "100.00 EUR, 10.00 USD");

    // What is usual in euros is a spike in dollars.
    db.execute(&format!("UPDATE vps_plans SET base_price = {} WHERE id = '{plan}'", money(db, 73_000))).await;
    let sum = spike(db, &daemon, &Order::by(hour(4))).await;
    assert_eq!((sum.hours, sum.amount), (100, Money(usd("100.00"))));
    let announced = waiting(&daemon).await.expect("it was announced");
    assert_eq!(announced.excesses[0].currency.to_string(), "USD");
    // Both.
    db.execute(&format!("UPDATE vps_plans SET base_price = {}", money(db, 100 * 730_000))).await;
    let Err(BillingError::Spike(Spike { excesses })) = daemon.carry_out(&Order::by(hour(4))).await else {
        panic!("no spike")
    };
    assert_eq!(excesses.iter().map(|excess| excess.currency.to_string()).collect::<Vec<_>>(), ["EUR", "USD"]);
    let announced = waiting(&daemon).await.expect("it was announced");
    approve(&daemon.db, announced.id, announced.excesses[1], "ada").await.expect("it is in the audit log");
    let left = waiting(&daemon).await.expect("euros still wait");
    assert_eq!(left.excesses, announced.excesses[..1]);
    let Err(BillingError::Spike(Spike { excesses })) = daemon.carry_out(&Order::by(hour(4))).await else {
        panic!("no spike")
    };
    assert_eq!(excesses.len(), 1, "dollars are approved");
    approve_all(&daemon).await;
    daemon.bill(hour(4)).await;
    assert_sound(db).await;
}

on_each_kind!(
    spikes_are_judged_by_currency,
    corrected_price_error_leaves_no_trace,
    only_approved_amount_is_charged,
    more_hours_or_instances_are_no_spike,
    spike_counts_prices_seen_before,
    spike_is_detected_despite_arrears,
    approved_catch_up_counts_towards_spike,
    run_stops_at_amount_due_at_start,
    zero_spike_factor_charges_everything,
);
