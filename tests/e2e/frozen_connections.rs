//! Connections that are frozen, without a FIN or a RST, do not stop billing.

use std::time::{Duration, Instant};

use billing_test_support::{Db, FreezingProxy, Login, Running, eventually};

use crate::daemon::{HEARTBEAT, check_all_charged_once, fetch, program, seed, with_panel_billing_off};

/// The time after a freeze until billing is back: 13 s until the deadline of the frozen statement, and the next attempt.
const ALLOWED: Duration = Duration::from_secs(15);

const BILLING_EACH_SECOND: &str = r#"
[[job]]
name = "billing"
kind = "billing"
schedule = { every = "1s" }
"#;

fn start(db: &Db, proxy: &FreezingProxy, daemons: usize) -> Vec<Running> {
    let jobs = with_panel_billing_off(db, &[BILLING_EACH_SECOND, HEARTBEAT].concat());
    let url = proxy.url(db, Login::Billing);
    let start = |_| program().env("DATABASE_URL", &url).file("jobs.toml", &jobs).start("run");
    (0..daemons).map(start).collect()
}

async fn runs(db: &Db) -> u64 {
    let done = "SELECT count(*) FROM scheduler_runs WHERE job = 'billing' AND status = 'done'";
    fetch(db, done).await.parse().expect("a count")
}

/// Freezes the connections; returns the database's time of it.
async fn freeze(db: &Db, proxy: &FreezingProxy) -> String {
    let at = fetch(db, "SELECT clock_timestamp()").await;
    proxy.freeze();
    at
}

/// Waits until a billing run that began after `at` has succeeded.
async fn billing_is_back(db: &Db, at: &str) {
    let later = format!(
        "SELECT count(*) > 0 FROM scheduler_runs WHERE job = 'billing' AND status = 'done' AND started_at > '{at}'"
    );
    eventually("billing is back", async || (fetch(db, &later).await == "true").then_some(())).await;
}

async fn frozen_while_idle(daemons: usize) {
    let db = Db::g3_role().await;
    let organizations = seed(&db, 5).await;
    let proxy = FreezingProxy::start().await;
    let running = start(&db, &proxy, daemons);
    eventually("billing runs", async || (runs(&db).await >= 2).then_some(())).await;
    let began = Instant::now();
    let at = freeze(&db, &proxy).await;
    billing_is_back(&db, &at).await;
    let took = began.elapsed();
    eprintln!("{daemons} daemons, frozen while idle: billing is back after {took:?}");
    assert!(took <= ALLOWED, "{took:?}");
    for daemon in running {
        daemon.terminated().await.expect_code(0);
    }
    check_all_charged_once(&db, &organizations).await;
}

/// The batch waits for a lock of another transaction when its connection is frozen.
async fn frozen_in_a_batch(daemons: usize) {
    let db = Db::g3_role().await;
    let organizations = seed(&db, 5).await;
    let proxy = FreezingProxy::start().await;
    let panel = db.begin().await.expect("a transaction begins");
    sea_orm::ConnectionTrait::execute_unprepared(&panel, "SELECT * FROM wallets FOR UPDATE")
        .await
        .expect("the wallets are locked");
    let running = start(&db, &proxy, daemons);
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity
                  WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%wallets%'";
    eventually("a batch waits", async || (fetch(&db, waits).await == "true").then_some(())).await;
    let began = Instant::now();
    let at = freeze(&db, &proxy).await;
    panel.rollback().await.expect("the locks are released");
    billing_is_back(&db, &at).await;
    let took = began.elapsed();
    eprintln!("{daemons} daemons, frozen in a batch: billing is back after {took:?}");
    assert!(took <= ALLOWED, "{took:?}");
    for daemon in running {
        daemon.terminated().await.expect_code(0);
    }
    check_all_charged_once(&db, &organizations).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_freeze_delays_one_daemon() {
    frozen_while_idle(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_freeze_delays_three_daemons() {
    frozen_while_idle(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freeze_in_batch_delays_one_daemon() {
    frozen_in_a_batch(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freeze_in_batch_delays_three_daemons() {
    frozen_in_a_batch(3).await;
}
