//! Poolers and proxies without a server behind them: commands report it, and the daemon waits for it.

use std::net::Ipv4Addr;

use billing_store::{Database, Pool, begin, query_one};
use billing_test_support::{BILLING_ROLE, Db, Pooler, Postgres};
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::daemon::{BILLING, program};

/// Accepts connections and closes them at once, as a proxy does without a primary.
async fn closing_proxy() -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let port = listener.local_addr().expect("a listener has an address").port();
    let task = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    (port, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_without_primary_is_waited_for() {
    let (port, proxy) = closing_proxy().await;
    let reason = "the server or proxy closed the connection: is there a primary behind it?";
    let url = format!("postgres://{BILLING_ROLE}@127.0.0.1:{port}/panel");
    let program = program().env("DATABASE_URL", &url).file("jobs.toml", BILLING);
    let status = program.run("status").await.expect_code(69);
    assert!(status.text().contains(reason), "{}", status.text());
    let daemon = program.start("run");
    let waits = daemon.wait_for_line("next attempt in 1 s").await;
    assert!(waits.contains(reason), "{waits}");
    daemon.wait_for_line("next attempt in 8 s").await;
    daemon.ended().await.expect_code(69);
    proxy.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooler_without_server_is_waited_for() {
    let pooler = Pooler::start_before(1, 1);
    let url = format!("postgres://{BILLING_ROLE}@127.0.0.1:{}/panel", pooler.port());
    let program = program().env("DATABASE_URL", &url).file("jobs.toml", BILLING);
    let status = program.run("status").await.expect_code(69);
    assert!(status.text().contains("cannot open"), "{}", status.text());
    let daemon = program.start("run");
    daemon.wait_for_line("next attempt in 1 s").await;
    daemon.terminated().await.expect_code(0);
}

/// PostgreSQL reports where in its own source code an error was raised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_errors_have_no_source_line() {
    let missing = format!("postgres://{BILLING_ROLE}@127.0.0.1:{}/missing", Postgres::server().port());
    let refused = program().env("DATABASE_URL", &missing).run("status").await.expect_code(69).text();
    assert!(refused.contains("database \"missing\" does not exist"), "{refused}");
    let db = Db::g1_role().await;
    let opened = Box::pin(Database::new(db.url.parse().expect("a URL")).connect(Pool::Single)).await;
    let opened = opened.expect("it opens");
    let txn = begin(&opened).await.expect("it begins");
    let in_transaction = txn.execute_unprepared("SELECT nothing").await.expect_err("no column").to_string();
    txn.rollback().await.expect("it ends");
    let alone = query_one(&opened, Statement::from_string(DbBackend::Postgres, "SELECT nothing")).await;
    let alone = alone.expect_err("no column").to_string();
    for text in [refused, in_transaction, alone] {
        assert!(!text.contains(" at line "), "{text}");
    }
}
