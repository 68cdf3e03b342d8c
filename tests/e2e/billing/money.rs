//! Money to the cent: a month costs its price, and a wallet changes by what its ledger contains.

use billing_jobs::{
    billing::BillingSettings,
    daemon_status::{RunEnd, StatusRow},
};
use billing_test_support::{Db, Fleet, Instance, Plan, on_every_database, on_variants};
use sea_orm::DbBackend;
use serde_json::json;

use super::{
    CENT, Daemon, TEN_CENTS_AN_HOUR, add_instances, assert_sound, charged, hold_of, hour, in_usd, number, usd,
};

/// Hours in a billing month.
const MONTH: i64 = 730;

/// Prices a month. The daemon before this one charged 7.30, 0.00, 21.90 and 160.60 for them.
const PRICES: [&str; 4] = ["5.00", "2.00", "20.00", "160.37"];

async fn a_month_costs_its_price(db: &Db, settings: BillingSettings, hours_a_run: usize) {
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
        daemon.bill_under(lease.fencing_token, hour(hours)).await.expect("the run finishes");
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

async fn month_with_outages_costs_monthly_price(db: &Db) {
    let settings = BillingSettings { max_catch_up_hours: 73, ..BillingSettings::default() };
    a_month_costs_its_price(db, settings, 73).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn month_of_hourly_runs_costs_monthly_price() {
    a_month_costs_its_price(&Db::sqlite().await, BillingSettings::default(), 1).await;
}

async fn wallet_changes_by_sum_of_charges(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    add_instances(db, org, plan, 10).await;

    let totals = Daemon::of(db).await.bill(hour(2)).await;

    assert_eq!((totals.charged, in_usd(&totals)), (10, usd("2.00")));
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

async fn amount_below_wallet_unit_is_carried(db: &Db) {
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

/// How many debits contradict the panel's G3 invoice, which computes the balance after each row from the order of `created_at` alone,
/// and its wallet screen (G1 to G3), which shows the newest row first, by `created_at` and `id`, with the balances of its metadata.
async fn misplaced_debits(db: &Db) -> [i64; 2] {
    let metadata = |key: &str| match db.backend() {
        DbBackend::Sqlite => format!("CAST(round((metadata ->> '$.{key}') * 10000) AS INTEGER)"),
        _ => format!("(metadata ->> '{key}')::numeric"),
    };
    let (before, after) = (metadata("balance_before"), metadata("balance_after"));
    let invoice = format!(
        "SELECT count(*) FROM (
             SELECT metadata, amount,
                    (SELECT w.balance FROM wallets w WHERE w.organization_id = t.organization_id)
                    - sum(amount) OVER (PARTITION BY organization_id)
                    + sum(amount) OVER (PARTITION BY organization_id ORDER BY created_at) AS balance
               FROM payment_transactions t WHERE status = 'completed') AS shown
          WHERE amount < 0 AND balance <> {after}"
    );
    let screen = format!(
        "SELECT count(*) FROM (
             SELECT amount, {after} AS own_after, lead({before}) OVER newest AS next_before,
                    lead(amount) OVER newest AS next_amount, {before} AS own_before
               FROM payment_transactions WHERE status = 'completed'
             WINDOW newest AS (PARTITION BY organization_id ORDER BY created_at DESC, id DESC)) AS shown
          WHERE amount < 0 AND next_amount < 0 AND (own_after <> own_before + amount OR own_before <> next_before + next_amount)"
    );
    [number(db, &invoice).await, number(db, &screen).await]
}

async fn ledger_rows_follow_debit_order(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let orgs = [fleet.wallet("100.00").await, fleet.wallet("100.00").await];
    for org in orgs {
        add_instances(db, org, plan, 5).await;
    }
    let daemon = Daemon::with_batches_of(db, 3).await;
    daemon.bill(hour(1)).await;
    fleet.top_up(orgs[0], "7.00").await;
    daemon.bill(hour(3)).await;
    assert_eq!(misplaced_debits(db).await, [0, 0], "in one batch, and across batches");

    // The clock was an hour ahead until now.
    db.execute(match db.backend() {
        DbBackend::Sqlite => {
            "UPDATE payment_transactions
                SET created_at = strftime('%Y-%m-%dT%H:%M', created_at, '+1 hour') || substr(created_at, 17);
             UPDATE billing_batches SET ledger_until = ledger_until + 3600000000"
        }
        _ => {
            "UPDATE payment_transactions SET created_at = created_at + interval '1 hour';
             UPDATE billing_batches SET ledger_until = ledger_until + interval '1 hour'"
        }
    })
    .await;
    daemon.bill(hour(4)).await;
    daemon.bill(hour(6)).await;
    assert_eq!(number(db, "SELECT count(*) FROM payment_transactions WHERE amount < 0").await, 40);
    assert_eq!(misplaced_debits(db).await, [0, 0], "after the clock was set back");

    // It was years ahead for one batch: that one is not followed.
    let (years, ahead) = match db.backend() {
        DbBackend::Sqlite => {
            ("ledger_until + 100000000000000", "created_at > strftime('%Y-%m-%dT%H:%M:%f', 'now', '+1 day')")
        }
        _ => ("ledger_until + interval '3 years'", "created_at > now() + interval '1 day'"),
    };
    db.execute(&format!("UPDATE billing_batches SET ledger_until = {years} WHERE id = 1")).await;
    daemon.bill(hour(7)).await;
    assert_eq!(number(db, &format!("SELECT count(*) FROM payment_transactions WHERE {ahead}")).await, 0);
    assert_eq!(misplaced_debits(db).await, [0, 0], "after a clock that was years ahead");
    assert_sound(db).await;
}

/// The last column: the reason for which an organization with that currency is held.
const CURRENCIES: [(&str, Option<&str>); 6] = [
    ("'USD'", None),
    ("'EUR'", None),
    ("'EUR'", None),
    ("NULL", Some("invalid_currency")),
    ("'usd'", Some("invalid_currency")),
    ("''", Some("invalid_currency")),
];

async fn currencies_are_summed_separately(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let mut instances = Vec::new();
    for (currency, reason) in CURRENCIES {
        let org = fleet.wallet("100.00").await;
        db.execute(&format!("UPDATE wallets SET currency = {currency} WHERE organization_id = '{org}'"))
            .await;
        instances.push((org, fleet.instance(Instance::new(org, plan, hour(0))).await, reason));
    }
    // What the wallet does not cover is owed in its currency.
    let poor = fleet.wallet("0.05").await;
    db.execute(&format!("UPDATE wallets SET currency = 'GBP' WHERE organization_id = '{poor}'")).await;
    fleet.instance(Instance::new(poor, plan, hour(0))).await;

    let daemon = Daemon::of(db).await;
    let totals = daemon.bill(hour(2)).await;

    assert_eq!((totals.charged, totals.charges, totals.held, totals.hours), (3, 3, 4, 6));
    assert_eq!(totals.amounts().to_string(), "0.40 EUR, 0.20 USD");
    assert_eq!(totals.currencies.main().map(|(currency, _)| currency.to_string()).as_deref(), Some("EUR"));
    for (org, instance, reason) in instances {
        if let Some(reason) = reason {
            let hold = hold_of(&fleet, instance).await;
            assert_eq!((hold.reason.as_str(), hold.hours, hold.amount), (reason, Some(2), Some(20 * CENT)));
            assert!(hold.detail.contains("is not three letters A to Z"), "{}", hold.detail);
        } else {
            assert_eq!(fleet.balance(org).await, usd("99.80"));
        }
    }
    let of = |rows: &str| format!("SELECT count(*) FROM {rows}");
    for (rows, expected) in [
        ("billing_charges WHERE currency = 'EUR'", 2),
        ("payment_transactions WHERE currency = 'EUR' AND amount < 0", 2),
        ("billing_holds WHERE currency IS NULL", 3),
        ("billing_holds WHERE currency = 'GBP' AND reason = 'insufficient_balance'", 1),
    ] {
        assert_eq!(number(db, &of(rows)).await, expected, "{rows}");
    }
    let status = StatusRow::new(daemon.db.clone(), "daemon", "host", &json!({ "version": "1" }));
    status.report_run(&totals, RunEnd::Done).await.expect("the row is writable");
    let shown = match db.backend() {
        DbBackend::Sqlite => "total_amount = 4000 AND metadata ->> '$.totalAmounts.USD' = '0.20'",
        _ => "total_amount = 0.4 AND metadata -> 'totalAmounts' ->> 'USD' = '0.20'",
    };
    assert_eq!(number(db, &of(&format!("billing_daemon_status WHERE {shown}"))).await, 1);
    // A later run in the same currencies, and one after the currency was corrected.
    db.execute("UPDATE wallets SET currency = 'USD' WHERE currency IS NULL").await;
    assert_eq!(daemon.bill(hour(3)).await.amounts().to_string(), "0.20 EUR, 0.40 USD");
    assert_sound(db).await;
}

/// A balance that binary floating point would round, which SQLite makes of numbers in JSON.
async fn ledger_of_large_balance_is_exact(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly("24.31")).await;
    let org = fleet.wallet("900719925474.0993").await;
    fleet.instance(Instance::new(org, plan, hour(0))).await;
    Daemon::of(db).await.bill(hour(3)).await;
    assert_eq!(fleet.balance(org).await, 9_007_199_254_740_993 - usd("0.0999"));
    assert_sound(db).await;
}

on_variants!(ledger_of_large_balance_is_exact: sqlite);
on_every_database!(month_with_outages_costs_monthly_price, wallet_changes_by_sum_of_charges);
on_each_kind!(
    amount_below_wallet_unit_is_carried,
    ledger_rows_follow_debit_order,
    currencies_are_summed_separately
);
