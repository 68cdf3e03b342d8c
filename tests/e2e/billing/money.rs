//! Money to the cent: a month costs its price, and a wallet moves by what its ledger says.

use billing_jobs::billing::Settings;
use e2e::{Db, Fleet, Instance, Plan, on_every_database};

use super::{CENT, Daemon, TEN_CENTS_AN_HOUR, add_instances, assert_sound, charged, hour, number, usd};

/// Hours in a billing month.
const MONTH: i64 = 730;

/// Prices a month. The daemon before this one charged 7.30, 0.00, 21.90 and 160.60 for them.
const PRICES: [&str; 4] = ["5.00", "2.00", "20.00", "160.37"];

async fn a_month_costs_its_price(db: &Db, settings: Settings, hours_a_run: usize) {
    let fleet = Fleet::new(db);
    let mut instances = Vec::new();
    for price in PRICES {
        let org = fleet.wallet("200.00").await;
        let plan = fleet.plan(Plan::monthly(price)).await;
        instances.push((price, org, fleet.instance(Instance::new(org, plan, hour(0))).await));
    }
    let daemon = Daemon::with(db, settings).await;
    let lease = daemon.claim().await;
    for hours in (0..=MONTH).step_by(hours_a_run) {
        daemon.bill_under(lease.fence, hour(hours)).await.expect("the run comes to its end");
        if hours % 73 > 0 {
            continue;
        }
        for (price, org, _) in &instances {
            // What is owed until then, less what the wallet cannot hold yet.
            let owed = usd(price) * hours / MONTH / db.wallet_unit() * db.wallet_unit();
            assert_eq!(fleet.balance(*org).await, usd("200.00") - owed, "{price} after {hours} hours");
        }
    }
    for (price, org, instance) in instances {
        assert_eq!(fleet.balance(org).await, usd("200.00") - usd(price));
        let (_, hours, amount) = charged(&fleet, instance).await;
        assert_eq!((hours, amount), (MONTH, usd(price)));
        let cycles = fleet.cycles(instance).await;
        assert_eq!(cycles.iter().map(|cycle| cycle.total).sum::<i64>(), usd(price));
    }
    assert_sound(db).await;
}

/// B4
async fn a_month_of_outages_costs_its_price(db: &Db) {
    let settings = Settings { max_catch_up_hours: 73, ..Settings::default() };
    a_month_costs_its_price(db, settings, 73).await;
}

/// B4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_month_of_hourly_runs_costs_its_price() {
    a_month_costs_its_price(&Db::sqlite().await, Settings::default(), 1).await;
}

/// B7
async fn a_wallet_moves_by_the_sum_of_its_charges(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    add_instances(db, org, plan, 10).await;

    let totals = Daemon::of(db).await.bill(hour(2)).await;

    assert_eq!((totals.charged, totals.amount.0), (10, usd("2.00")));
    assert_eq!(fleet.balance(org).await, usd("98.00"));
    let mut chain = Vec::new();
    for row in fleet.ledger(org).await {
        assert_eq!(row.amount, -20 * CENT);
        chain.push(
            ["balance_before", "balance_after"].map(|key| row.metadata[key].as_f64().expect("a number")),
        );
    }
    chain.sort_unstable_by(|one, other| other[0].total_cmp(&one[0]));
    assert_eq!((chain[0][0], chain[9][1]), (100.0, 98.0));
    assert!(
        chain.windows(2).all(|pair| pair[0][1].total_cmp(&pair[1][0]).is_eq()),
        "each begins where the last ended: {chain:?}"
    );
    assert_sound(db).await;
}

async fn an_hour_that_costs_less_than_the_wallet_can_hold_is_carried_on(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("0.00").await;
    // A fifth of a unit of the wallet an hour.
    let monthly = if db.wallet_unit() == CENT { "1.46" } else { "0.02" };
    let plan = fleet.plan(Plan::monthly(monthly)).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;

    for hours in 1..=3 {
        assert_eq!(daemon.bill(hour(hours)).await.hours, 1, "an hour that costs nothing yet needs no money");
    }
    assert_eq!(fleet.ledger(org).await, [], "nothing was taken");
    assert_eq!(fleet.cycles(instance).await.len(), 3, "but the hours are billed");
    fleet.top_up(org, "1.00").await;
    daemon.bill(hour(10)).await;

    let taken = if db.wallet_unit() == CENT { 2 * CENT } else { 2 };
    assert_eq!(fleet.balance(org).await, 100 * CENT - taken);
    assert_eq!(number(db, "SELECT count(*) FROM payment_transactions WHERE amount < 0").await, 1);
    assert_sound(db).await;
}

on_every_database!(a_month_of_outages_costs_its_price, a_wallet_moves_by_the_sum_of_its_charges);
on_each_kind!(an_hour_that_costs_less_than_the_wallet_can_hold_is_carried_on);
