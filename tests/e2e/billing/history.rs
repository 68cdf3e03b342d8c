//! What a run costs does not grow with the history that is there.

use e2e::{Db, Fleet, Plan, eventually};

use super::{Daemon, TEN_CENTS_AN_HOUR, add_instances, ask, hour, number};

const ORGANIZATIONS: i64 = 30;
const MACHINES_EACH: u32 = 10;
const MACHINES: i64 = 300;

/// Tables that only ever grow.
const HISTORY: &str = "'billing_charges', 'payment_transactions', 'vps_billing_cycles', 'billing_batches'";

/// PostgreSQL counts what each table was read for, so this holds for every statement that was sent, those of foreign keys and
/// triggers included, and for the plans that they were really given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_of_a_run_reads_a_history_table_as_a_whole() {
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
    db.execute(
        "INSERT INTO payment_transactions (organization_id, amount, payment_method, payment_provider, status)
         SELECT gen_random_uuid(), 1, 'card', 'stripe', 'completed' FROM generate_series(1, 20000);
         INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate, amount, carry)
         SELECT '2020-01-01', gen_random_uuid(), gen_random_uuid(), 0, 1, 0, 0, 0 FROM generate_series(1, 20000);
         INSERT INTO billing_batches (run_id, fence, as_of, instances, charges, held, hours, amount)
         SELECT gen_random_uuid(), 0, '2020-01-01', 0, 0, 0, 0, 0 FROM generate_series(1, 20000);",
    )
    .await;
    db.execute("ANALYZE").await;
    let before = reads(db).await;
    let charges = number(db, "SELECT count(*) FROM billing_charges").await;

    assert_eq!(Daemon::of(db).await.bill(hour(2)).await.charged, MACHINES.unsigned_abs());

    // A session reports what it did once it is idle.
    let inserted = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'billing_charges'";
    let there = async || (number(db, inserted).await == charges + MACHINES).then_some(());
    eventually("the figures are there", there).await;
    for ((table, scans, rows), (_, scans_before, rows_before)) in reads(db).await.into_iter().zip(before) {
        assert_eq!(scans - scans_before, number_of_looks(&table), "{table} was read from end to end");
        let by_index = rows - rows_before;
        assert!(by_index <= 4 * MACHINES, "{by_index} rows of {table} were read by an index");
    }
}

/// This test itself counts the charges once.
fn number_of_looks(table: &str) -> i64 {
    i64::from(table == "billing_charges")
}

/// Of each table of history: how often it was read from end to end, and how many rows were found by an index.
async fn reads(db: &Db) -> Vec<(String, i64, i64)> {
    db.execute("SELECT pg_stat_force_next_flush()").await;
    let query = format!(
        "SELECT relname::text AS relname, seq_scan, coalesce(idx_tup_fetch, 0) AS fetched FROM pg_stat_user_tables
          WHERE relname IN ({HISTORY}) ORDER BY relname"
    );
    let rows = ask(db, &query).await;
    let read = |row: &sea_orm::QueryResult| -> Result<_, sea_orm::DbErr> {
        Ok((row.try_get("", "relname")?, row.try_get("", "seq_scan")?, row.try_get("", "fetched")?))
    };
    rows.iter().map(|row| read(row).expect("three figures")).collect()
}
