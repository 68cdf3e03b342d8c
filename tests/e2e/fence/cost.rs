//! What the fence costs an insert, and a balance that is written: `cargo test --release -p e2e --test e2e -- --ignored --nocapture fence::cost`.

use std::time::{Duration, Instant};

use e2e::{Db, Fleet, Instance, Login, Plan};
use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};

use super::{Daemon, fence, silent_for};
use crate::daemon::now;

const ROWS: u32 = 20_000;
const ROUNDS: usize = 9;

/// Rows of the ledger in one statement, in a transaction that is rolled back.
struct Inserts {
    what: &'static str,
    /// Sets up the transaction.
    settings: String,
    /// `n` is the number of the row.
    description: &'static str,
    /// How many rows there are.
    rows: u32,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, and asserts nothing"]
async fn what_the_fence_costs_an_insert() {
    let db = Db::g3_owner().await;
    let fleet = Fleet::new(&db);
    let (org, plan) = (fleet.wallet("100.00").await, fleet.plan(Plan::monthly("7.30")).await);
    let created = now(&db).await - chrono::TimeDelta::minutes(90);
    for n in 1..=1_000 {
        fleet.instance(Instance::new(org, plan, created).label(&format!("vps-{n}"))).await;
    }
    db.execute("ANALYZE").await;
    fence(&db).await;
    let number = Daemon::of(&db).await.claim().await.fence.0;
    silent_for(&db, 91).await;
    let owner = e2e::connect(&db.url_for(Login::Owner)).await;
    let hourly = "'VPS Hourly Billing - vps-' || n || ' (1h)'";
    for inserts in [
        Inserts {
            what: "an hourly debit of ours, in bulk",
            settings: format!("SELECT set_config('billing.fence', '{number}', true)"),
            description: hourly,
            rows: ROWS,
        },
        Inserts {
            what: "an hourly debit of the panel, charged into our ledger",
            settings: "SELECT".to_owned(),
            description: hourly,
            rows: 1_000,
        },
        Inserts {
            what: "any other row",
            settings: "SELECT".to_owned(),
            description: "'Egress ' || n",
            rows: ROWS,
        },
    ] {
        let [without, with] = compare(&db, inserts.rows, async || measure(&owner, org, &inserts).await).await;
        println!("{}: {without:.1} us without the fence, {with:.1} us with it", inserts.what);
    }
    db.execute(&format!(
        "INSERT INTO wallets (organization_id, balance) SELECT '{org}', 1 FROM generate_series(2, {ROWS}) AS n"
    ))
    .await;
    for (what, settings) in [
        ("a balance that we write, in bulk", format!("SET LOCAL billing.fence = '{number}'")),
        ("a balance that anybody else writes, in bulk", "SELECT".to_owned()),
    ] {
        let update = async || {
            let txn = owner.begin().await.expect("it begins");
            txn.execute_unprepared(&settings).await.expect("a setting");
            let began = Instant::now();
            txn.execute_unprepared("UPDATE wallets SET balance = balance + 1").await.expect("they are free");
            let took = began.elapsed();
            txn.rollback().await.expect("it ends");
            took
        };
        let [without, with] = compare(&db, ROWS, update).await;
        println!("{what}: {without:.1} us without the fence, {with:.1} us with it");
    }
}

/// What each of so many rows takes in microseconds without the fence, and with it: the median of alternating rounds.
async fn compare(db: &Db, rows: u32, measure: impl AsyncFn() -> Duration) -> [f64; 2] {
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (enable, took) in ["DISABLE", "ENABLE"].into_iter().zip(&mut took) {
            db.execute(&format!(
                "ALTER TABLE payment_transactions {enable} TRIGGER billing_fence;
                 ALTER TABLE wallets {enable} TRIGGER billing_fence_balance"
            ))
            .await;
            took.push(measure().await);
        }
    }
    took.map(|mut took| {
        took.sort_unstable();
        took[ROUNDS / 2].as_secs_f64() * 1e6 / f64::from(rows)
    })
}

async fn measure(owner: &DatabaseConnection, org: uuid::Uuid, inserts: &Inserts) -> Duration {
    let txn = owner.begin().await.expect("it begins");
    txn.execute_unprepared(&inserts.settings).await.expect("a setting");
    let sql = format!(
        "INSERT INTO payment_transactions
             (organization_id, amount, payment_method, payment_provider, status, description, metadata)
         SELECT '{org}', -0.01, 'wallet_debit', 'internal', 'completed', {}, '{{\"balance_before\":1,\"balance_after\":0.99}}'
           FROM generate_series(1, {}) AS n",
        inserts.description, inserts.rows
    );
    let began = Instant::now();
    txn.execute_unprepared(&sql).await.expect("the rows are taken");
    let took = began.elapsed();
    txn.rollback().await.expect("it ends");
    took
}
