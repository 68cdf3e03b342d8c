//! The cost of a run does not grow with the history.

use billing_test_support::{Db, Fleet, Plan, eventually};
use sea_orm::FromQueryResult;

use super::{Daemon, TEN_CENTS_AN_HOUR, add_instances, fetch_rows, hour, number};

const ORGANIZATIONS: i64 = 30;
const MACHINES_EACH: u32 = 10;
const INSTANCES: i64 = 300;

/// Tables that only grow.
const HISTORY: &str =
    "'billing_charges', 'payment_transactions', 'vps_billing_cycles', 'billing_batches', 'scheduler_runs'";

/// PostgreSQL counts what each table was read for, so this holds for every statement that was sent, those of foreign keys and
/// triggers included, and for the plans that they were really given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_scans_no_history_table() {
    let db = &Db::postgres().await;
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    for _ in 0..ORGANIZATIONS {
        let org = fleet.wallet("100.00").await;
        add_instances(db, org, plan, MACHINES_EACH).await;
    }
    // Two hours of our own, and what others left in the same tables.
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;
    end_sessions(db, daemon).await;
    db.execute(
        "INSERT INTO payment_transactions (organization_id, amount, payment_method, payment_provider, status)
         SELECT gen_random_uuid(), 1, 'card', 'stripe', 'completed' FROM generate_series(1, 20000);
         INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate, amount, carry, currency)
         SELECT '2020-01-01', gen_random_uuid(), gen_random_uuid(), 0, 1, 0, 0, 0, 'USD' FROM generate_series(1, 20000);
         INSERT INTO billing_batches (run_id, fencing_token, as_of, instances, charges, held, hours, currencies)
         SELECT gen_random_uuid(), 0, '2020-01-01', 0, 0, 0, 0, '{}' FROM generate_series(1, 20000);
         INSERT INTO scheduler_runs (id, job, scheduled_at, status, fencing_token, daemon_id, started_at, finished_at)
         SELECT gen_random_uuid(), 'other', '2020-01-01', 'skipped', 0, '', '2020-01-01', '2020-01-01'
           FROM generate_series(1, 20000);
         SELECT pg_stat_force_next_flush();",
    )
    .await;
    db.execute("ANALYZE").await;
    let before = counted(db).await;

    let daemon = Daemon::of(db).await;
    assert_eq!(daemon.bill(hour(2)).await.charged, INSTANCES.unsigned_abs());

    end_sessions(db, daemon).await;
    for (after, before) in counted(db).await.into_iter().zip(before) {
        let table = after.table;
        assert_eq!(after.scans, before.scans, "{table} was read from end to end");
        let by_index = after.found - before.found;
        assert!(by_index <= 4 * INSTANCES, "{by_index} rows of {table} were read by an index");
        let inserted = after.inserted - before.inserted;
        assert!(inserted > 0 && inserted <= INSTANCES, "{inserted} rows of {table} were counted");
    }
}

/// A session reports what it did before it is gone from the list of sessions.
async fn end_sessions(db: &Db, daemon: Daemon) {
    let pool = daemon.db.clone();
    // Its store has a connection outside of the pool.
    drop(daemon);
    pool.close().await.expect("a pool closes");
    let sessions = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'billing-daemon'";
    eventually("its sessions are gone", async || (number(db, sessions).await == 0).then_some(())).await;
}

/// What PostgreSQL counts of a table.
#[derive(FromQueryResult)]
struct Counted {
    table: String,
    /// The number of sequential scans.
    scans: i64,
    /// The number of rows found by an index.
    found: i64,
    inserted: i64,
}

/// The counts of each table of history.
async fn counted(db: &Db) -> Vec<Counted> {
    db.execute("SELECT pg_stat_force_next_flush()").await;
    let query = format!(
        "SELECT relname::text AS table, seq_scan AS scans, coalesce(idx_tup_fetch, 0) AS found, n_tup_ins AS inserted
           FROM pg_stat_user_tables WHERE relname IN ({HISTORY}) ORDER BY relname"
    );
    let rows = fetch_rows(db, &query).await;
    rows.iter().map(|row| Counted::from_query_result(row, "").expect("a name and three figures")).collect()
}
