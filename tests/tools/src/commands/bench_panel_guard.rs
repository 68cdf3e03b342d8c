//! The cost of the panel guard for a debit and for a balance update:
//! `cargo run --release -p billing-tools -- bench-panel-guard [--rows 20000] [--rounds 9]`.
//!
//! Each is one statement over many rows in a transaction that is rolled back, with the triggers off and on in turn.

use std::{sync::Arc, time::Duration};

use billing_jobs::{BILLING_JOB, panel_guard};
use billing_scheduler::{Claim, Clock, FencingToken, Store, SystemClock};
use billing_store::{Database, Pool, SeaOrmStore};
use billing_test_support::{Db, Fleet, Instance, Login, Plan};
use chrono::{DateTime, TimeDelta};
use clap::Args;
use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

/// The instances of the organization: each debit of the panel names one.
const INSTANCES: u32 = 1_000;

/// Measure the cost of the panel guard
#[derive(Args)]
pub(super) struct BenchPanelGuardArgs {
    /// Rows that a statement writes, with at most a thousand debits of the panel
    #[arg(long, default_value_t = 20_000)]
    rows: u32,
    /// Number of rounds without and with the panel guard
    #[arg(long, default_value_t = 9)]
    rounds: usize,
}

/// A statement over many rows.
struct Measured {
    /// The figure's name.
    what: &'static str,
    /// Sets up the transaction.
    settings: String,
    sql: String,
    rows: u32,
}

pub(super) async fn run(args: &BenchPanelGuardArgs) -> Value {
    let db = Db::g3_owner().await;
    let org = seed(&db, args.rows).await;
    let owner = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    panel_guard::install(&owner, "bench").await.expect("the owner may");
    let number = claim(&db).await.0;
    // Longer ago than the panel waits.
    db.execute("UPDATE scheduler_fencing SET last_success_at = now() - interval '91 minutes'").await;

    let ours = format!("SELECT set_config('billing.fencing_token', '{number}', true)");
    let nothing = "SELECT".to_owned();
    let hourly = "'VPS Hourly Billing - vps-' || n || ' (1h)'";
    let balances = "UPDATE wallets SET balance = balance + 1".to_owned();
    let panels = args.rows.min(INSTANCES);
    let mut figures = json!({ "rows": args.rows, "rounds": args.rounds });
    for measured in [
        Measured {
            what: "debit_of_ours_us",
            settings: ours.clone(),
            sql: debits(org, hourly, args.rows),
            rows: args.rows,
        },
        Measured {
            what: "debit_of_the_panel_us",
            settings: nothing.clone(),
            sql: debits(org, hourly, panels),
            rows: panels,
        },
        Measured {
            what: "other_row_us",
            settings: nothing.clone(),
            sql: debits(org, "'Egress ' || n", args.rows),
            rows: args.rows,
        },
        Measured { what: "balance_of_ours_us", settings: ours, sql: balances.clone(), rows: args.rows },
        Measured { what: "other_balance_us", settings: nothing, sql: balances, rows: args.rows },
    ] {
        figures[measured.what] = compare(&db, &owner, args.rounds, &measured).await;
    }
    figures
}

/// One organization with all the instances, and so many wallets. Returns the organization.
async fn seed(db: &Db, wallets: u32) -> Uuid {
    let fleet = Fleet::new(db);
    let (org, plan) = (fleet.wallet("100.00").await, fleet.plan(Plan::monthly("7.30")).await);
    let created = SystemClock.now() - TimeDelta::minutes(90);
    for n in 1..=INSTANCES {
        fleet.instance(Instance::new(org, plan, created).label(&format!("vps-{n}"))).await;
    }
    // They belong to separate organizations: the panel's debits are refused where one has two.
    db.execute(&format!(
        "WITH added AS (INSERT INTO organizations (name, slug, owner_id)
                        SELECT 'bench', 'bench-' || n, owner_id FROM organizations, generate_series(2, {wallets}) AS n
                        RETURNING id)
         INSERT INTO wallets (organization_id, balance) SELECT id, 1 FROM added"
    ))
    .await;
    db.execute("ANALYZE").await;
    org
}

async fn claim(db: &Db) -> FencingToken {
    let database = Database::new(db.url.parse().expect("the harness has a valid URL"));
    let pool = Box::pin(database.connect(Pool::Shared)).await.expect("the database answers");
    let store = SeaOrmStore::new(pool, database, "bench", Duration::from_secs(10), Arc::new(SystemClock));
    match store.acquire(BILLING_JOB, DateTime::UNIX_EPOCH).await.expect("a claim") {
        Claim::Held(lease) => lease.fencing_token,
        Claim::Busy { .. } => panic!("there is no other holder"),
    }
}

/// Rows of the ledger. `n` is the number of the row in their description.
fn debits(org: Uuid, description: &str, rows: u32) -> String {
    format!(
        "INSERT INTO payment_transactions
             (organization_id, amount, payment_method, payment_provider, status, description, metadata)
         SELECT '{org}', -0.01, 'wallet_debit', 'internal', 'completed', {description},
                '{{\"balance_before\":1,\"balance_after\":0.99}}'
           FROM generate_series(1, {rows}) AS n"
    )
}

/// What each row takes in microseconds without the panel guard, and with it: the medians of rounds that alternate.
async fn compare(db: &Db, owner: &DatabaseConnection, rounds: usize, measured: &Measured) -> Value {
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (enable, took) in ["DISABLE", "ENABLE"].into_iter().zip(&mut took) {
            db.execute(&format!(
                "ALTER TABLE payment_transactions {enable} TRIGGER billing_panel_guard;
                 ALTER TABLE wallets {enable} TRIGGER billing_panel_guard_balance"
            ))
            .await;
            took.push(execute(owner, measured).await);
        }
    }
    let [without, with] = took.map(|mut took| {
        took.sort_unstable();
        let each = took.get(rounds / 2).map(|took| took.as_secs_f64() * 1e6 / f64::from(measured.rows));
        each.map(|each| (each * 100.0).round() / 100.0)
    });
    json!({ "without": without, "with": with })
}

async fn execute(owner: &DatabaseConnection, measured: &Measured) -> Duration {
    let txn = owner.begin().await.expect("it begins");
    txn.execute_unprepared(&measured.settings).await.expect("a setting");
    let began = Instant::now();
    txn.execute_unprepared(&measured.sql).await.expect("the rows are taken");
    let took = began.elapsed();
    txn.rollback().await.expect("it ends");
    took
}
