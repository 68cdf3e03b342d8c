//! Futures that are dropped before their end, like a run that exceeds its timeout: their work is rolled back, and their
//! connection is used by nothing else.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll, Waker},
};

use billing_store::{Database, Pool, Transaction};
use billing_test_support::{Db, eventually, on_every_engine, process::Signal};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};

use crate::daemon::{BILLING, check_all_charged_once, daemon, fetch, free_all_jobs, seed};

/// The pool of a daemon.
async fn pool(db: &Db) -> DatabaseConnection {
    let database =
        Database::new(db.url.parse().expect("a URL of ours")).with_application_name("billing-daemon");
    database.connect(Pool::Shared).await.expect("the database is there")
}

/// Which connection of the pool it is; always the same one on SQLite, which has no such id.
async fn connection(txn: &Transaction) -> i32 {
    let sql = match txn.get_database_backend() {
        DbBackend::Sqlite => "SELECT 0",
        _ => "SELECT pg_backend_pid()",
    };
    let row = txn.query_one_raw(Statement::from_string(txn.get_database_backend(), sql)).await;
    row.expect("a connection answers").expect("one row").try_get_by_index(0).expect("a number")
}

/// Whether `future` finished before it was dropped, right after this many polls.
async fn ends_within(polls: u32, future: impl Future) -> bool {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|cx| {
        polled += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending if polled == polls => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_begin_leaves_no_open_transaction() {
    let db = Db::postgres().await;
    let pool = pool(&db).await;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND application_name = 'billing-daemon' AND state <> 'idle'";
    // The first ones open a connection, later ones reuse it.
    for _ in 0..10 {
        let mut polls = 1;
        while !ends_within(polls, billing_store::begin(&pool)).await {
            eventually("nothing is open", async || (fetch(&db, open).await == "0").then_some(())).await;
            polls += 1;
        }
    }
    let txn = billing_store::begin(&pool).await.expect("the pool has a connection left");
    txn.commit().await.expect("it works");
}

async fn abandoned_statement_discards_its_connection(db: &Db) {
    db.execute("CREATE TABLE notes (id int)").await;
    if db.backend() == DbBackend::Postgres {
        db.execute("GRANT ALL ON notes TO PUBLIC").await;
    }
    let pool = pool(db).await;
    let txn = billing_store::begin(&pool).await.expect("a transaction begins");
    let dropped = connection(&txn).await;
    let slow = match db.backend() {
        DbBackend::Sqlite => {
            "INSERT INTO notes WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 300000) SELECT n FROM c"
        }
        _ => "INSERT INTO notes SELECT 1 FROM pg_sleep(5)",
    };
    let mut writing = Box::pin(async move {
        let written = txn.execute_unprepared(slow).await;
        txn.commit().await.and(written)
    });
    let polled = writing.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "it is in the middle of the statement");
    if db.backend() == DbBackend::Postgres {
        let at_it = format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {dropped}");
        eventually("the server is at it", async || (fetch(db, &at_it).await == "PgSleep").then_some(()))
            .await;
    }
    drop(writing);

    for _ in 0..20 {
        let txn = billing_store::begin(&pool).await.expect("the pool has a connection left");
        assert!(db.backend() == DbBackend::Sqlite || connection(&txn).await != dropped, "it is used again");
        txn.execute_unprepared("INSERT INTO notes VALUES (0)").await.expect("a row is written");
        txn.commit().await.expect("it is committed");
    }
    if db.backend() == DbBackend::Postgres {
        let there = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {dropped}");
        eventually("it is closed", async || (fetch(db, &there).await == "0").then_some(())).await;
    }
    assert_eq!(fetch(db, "SELECT count(*) || ' ' || sum(id) FROM notes").await, "20 0");
}

/// A daemon that is ended at once leaves nothing of the batch in progress.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_batch_is_rolled_back() {
    let db = &Db::postgres().await;
    let organizations = seed(db, 2).await;
    let program = daemon(db, &[BILLING]);
    let running = program.clone().env("BILLING_LINGER_MS", "9000").start("run");
    let lingers = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                      AND application_name = 'billing-daemon' AND state = 'idle in transaction'
                      AND state_change < now() - interval '1 second'";
    eventually("a batch is open", async || (fetch(db, lingers).await == "1").then_some(())).await;
    for answer in ["nothing new starts", "another signal ends the process at once"] {
        running.signal(Signal::TERM);
        running.wait_for_line(answer).await;
    }
    running.terminated().await.expect_code(143);
    assert_eq!(fetch(db, "SELECT count(*) FROM billing_charges").await, "0");
    free_all_jobs(db).await;
    let running = program.start("run");
    running.wait_for_line("job `billing` done").await;
    running.terminated().await.expect_code(0);
    check_all_charged_once(db, &organizations).await;
}

on_every_engine!(abandoned_statement_discards_its_connection);
