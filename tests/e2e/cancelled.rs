//! Futures that are dropped half-way, as a run is that outlives its timeout: what they had begun is rolled back, and their
//! connection is nobody else's.

use std::time::Duration;

use billing_daemon::database::{Database, Pool};
use e2e::{Db, eventually, on_every_engine, process::Signal};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, Statement};
use tokio::time::sleep;

use crate::daemon::{BILLING, ask, check_all_charged_once, daemon, seed};

/// The pool of a daemon.
async fn pool(db: &Db) -> DatabaseConnection {
    let database = Database::new(db.url.parse().expect("a URL of ours"));
    database.connect(Pool::Shared).await.expect("the database is there")
}

/// Which connection of the pool it is; the same one always on SQLite, which cannot tell.
async fn connection(txn: &DatabaseTransaction) -> i32 {
    let sql = match txn.get_database_backend() {
        DbBackend::Sqlite => "SELECT 0",
        _ => "SELECT pg_backend_pid()",
    };
    let row = txn.query_one_raw(Statement::from_string(txn.get_database_backend(), sql)).await;
    row.expect("a connection answers").expect("one row").try_get_by_index(0).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_begin_that_nobody_waits_for_leaves_no_transaction_open() {
    let db = Db::postgres().await;
    let pool = pool(&db).await;
    let mut rng = StdRng::seed_from_u64(1);
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND application_name = 'billing-daemon' AND state <> 'idle'";
    for _ in 0..150 {
        let pool = pool.clone();
        let beginning = tokio::spawn(async move { billing_jobs::begin(&pool).await.map(drop) });
        sleep(Duration::from_micros(rng.random_range(0..700))).await;
        beginning.abort();
        eventually("nothing is open", async || (ask(&db, open).await == "0").then_some(())).await;
    }
    let txn = billing_jobs::begin(&pool).await.expect("the pool has a connection left");
    txn.commit().await.expect("it works");
}

async fn a_statement_that_nobody_waits_for_is_rolled_back_and_its_connection_thrown_away(db: &Db) {
    db.execute("CREATE TABLE notes (id int)").await;
    if db.backend() == DbBackend::Postgres {
        db.execute("GRANT ALL ON notes TO PUBLIC").await;
    }
    let pool = pool(db).await;
    let txn = billing_jobs::begin(&pool).await.expect("a transaction begins");
    let dropped = connection(&txn).await;
    let slow = match db.backend() {
        DbBackend::Sqlite => {
            "INSERT INTO notes WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 300000) SELECT n FROM c"
        }
        _ => "INSERT INTO notes SELECT 1 FROM pg_sleep(1)",
    };
    let writing = tokio::spawn(async move {
        let written = txn.execute_unprepared(slow).await;
        txn.commit().await.and(written)
    });
    sleep(Duration::from_millis(50)).await;
    writing.abort();
    assert!(writing.await.is_err_and(|error| error.is_cancelled()), "it was in the middle of the statement");

    for _ in 0..20 {
        let txn = billing_jobs::begin(&pool).await.expect("the pool has a connection left");
        assert!(db.backend() == DbBackend::Sqlite || connection(&txn).await != dropped, "it is used again");
        txn.execute_unprepared("INSERT INTO notes VALUES (0)").await.expect("a row is written");
        txn.commit().await.expect("it is committed");
    }
    if db.backend() == DbBackend::Postgres {
        let there = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {dropped}");
        eventually("it is closed", async || (ask(db, &there).await == "0").then_some(())).await;
    }
    assert_eq!(ask(db, "SELECT count(*) || ' ' || sum(id) FROM notes").await, "20 0");
}

/// A daemon whose run does not end in time ends all the same, and its batch was never there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_left_at_the_end_is_rolled_back() {
    let db = &Db::postgres().await;
    let organizations = seed(db, 2).await;
    let program = daemon(db, &["[daemon]\ndrain-timeout = \"1s\"\n", BILLING]);
    let running = program.clone().env("BILLING_LINGER_MS", "9000").start("run");
    let lingers = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                      AND application_name = 'billing-daemon' AND state = 'idle in transaction'
                      AND state_change < now() - interval '1 second'";
    eventually("a batch is open", async || (ask(db, lingers).await == "1").then_some(())).await;
    running.signal(Signal::TERM);
    running.ended().await.expect_code(70);
    assert_eq!(ask(db, "SELECT count(*) FROM billing_charges").await, "0");
    db.execute("UPDATE billing_job_state SET holder = NULL, expires_at = NULL").await;
    let running = program.start("run");
    running.says("job `billing` done").await;
    running.terminated().await.expect_code(0);
    check_all_charged_once(db, &organizations).await;
}

on_every_engine!(a_statement_that_nobody_waits_for_is_rolled_back_and_its_connection_thrown_away);
