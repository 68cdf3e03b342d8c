//! The queries of a daemon without work, counted by a proxy in front of PostgreSQL. No time is measured: the
//! queries are compared with the number of ticks, every second of which sends one.

use std::collections::BTreeMap;

use billing_test_support::{
    Db, Postgres, eventually,
    query_accounting::{
        CLAIM, CONNECTION, CONTROL_POLL, LAST_RECORD, LATE, NODE_RECORD, POOL, RENEWAL, WORK, by_cause,
    },
};
use billing_tools::faults::Proxy;

use crate::daemon::{HEARTBEAT, TICK, daemon, fetch, job};

/// How many connections the pool of a daemon has at most.
const CONNECTIONS: usize = 6;

/// Due in months, and claimed once, at the start.
fn resting(jobs: usize) -> String {
    (0..jobs).map(|number| job(&format!("resting-{number}"), "test.tick", "365d", "")).collect()
}

/// Waits until a row of the history satisfies `condition` at least so many times.
async fn until_runs(db: &Db, condition: &str, least: usize) {
    let enough = format!("SELECT count(*) >= {least} FROM scheduler_runs WHERE {condition}");
    eventually("there were runs", async || (fetch(db, &enough).await == "true").then_some(())).await;
}

/// The number of round trips of a daemon with these jobs by purpose, while a job is due in each second.
async fn round_trips_while(jobs: &str, until: impl AsyncFnOnce(&Db)) -> BTreeMap<String, usize> {
    let db = Db::postgres().await;
    let server = Postgres::server().port();
    let proxy = Proxy::start(server).await.expect("a port is free");
    let url = db.url.replace(&format!(":{server}/"), &format!(":{}/", proxy.port()));
    let running = daemon(&db, &[jobs]).env("DATABASE_URL", &url).start("run");
    let claimed = "SELECT count(*) FROM scheduler_jobs WHERE holder IS NULL AND schedule IS NOT NULL";
    let expected = jobs.matches("[[job]]").count() - jobs.matches("scope = \"node\"").count();
    eventually("every job was looked at", async || {
        (fetch(&db, claimed).await == expected.to_string()).then_some(())
    })
    .await;
    // The work of the start is finished with the next runs.
    until_runs(&db, "true", 2).await;
    let _ = proxy.round_trips();
    until(&db).await;
    let round_trips = by_cause(&proxy.round_trips());
    running.terminated().await.expect_code(0);
    round_trips
}

fn of(round_trips: &BTreeMap<String, usize>, cause: &str) -> usize {
    round_trips.get(cause).copied().unwrap_or_default()
}

fn assert_nothing_else(round_trips: &BTreeMap<String, usize>, known: &[&str]) {
    let others: Vec<_> = round_trips.keys().filter(|cause| !known.contains(&cause.as_str())).collect();
    assert_eq!(others, [""; 0], "{round_trips:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_job_sends_no_queries() {
    let jobs = [TICK, &resting(20)].concat();
    let round_trips = round_trips_while(&jobs, async |db| until_runs(db, "job = 'tick'", 14).await).await;
    // Without a run in progress each second tick polls.
    let ticks = 2 * of(&round_trips, CONTROL_POLL);
    assert!(ticks >= 5, "{round_trips:?}");
    // A job that is due in each second is due once in each tick; one run may be cut at either end.
    for cause in [CLAIM, LAST_RECORD] {
        assert!(of(&round_trips, cause).abs_diff(ticks) <= 3, "{cause}: {round_trips:?}");
    }
    assert!(of(&round_trips, LATE) <= ticks / 20 + 1, "{round_trips:?}");
    // Concurrent calls wait for each other, and one that waits too long uses the pool.
    assert!(of(&round_trips, POOL) <= ticks, "{round_trips:?}");
    // A job of one second is claimed right after its run, for the next one: its lease is extended every third of it.
    assert!(of(&round_trips, RENEWAL) <= ticks / 3 + 2, "{round_trips:?}");
    // The pool may have to open one more connection meanwhile, which takes three round trips.
    assert!(of(&round_trips, CONNECTION) <= 3 * CONNECTIONS, "{round_trips:?}");
    assert_nothing_else(&round_trips, &[CONTROL_POLL, CLAIM, LAST_RECORD, LATE, POOL, RENEWAL, CONNECTION]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeat_sends_expected_queries() {
    let jobs = [HEARTBEAT, &resting(2)].concat();
    let round_trips =
        round_trips_while(&jobs, async |db| until_runs(db, "job = 'heartbeat'", 12).await).await;
    let beats = of(&round_trips, NODE_RECORD);
    assert!(beats >= 5, "{round_trips:?}");
    assert!(of(&round_trips, WORK) <= 2 * beats + 2, "{round_trips:?}");
    // A statement that waits too long for the one before it uses the pool, which then checks the connection three times.
    assert!(of(&round_trips, POOL) <= 3 * beats + 6, "{round_trips:?}");
    assert_nothing_else(&round_trips, &[CONTROL_POLL, NODE_RECORD, WORK, POOL, LATE, CONNECTION]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepaid_check_sends_two_queries() {
    let jobs = [job("prepaid", "prepaid", "1s", ""), resting(2)].concat();
    let round_trips = round_trips_while(&jobs, async |db| until_runs(db, "job = 'prepaid'", 12).await).await;
    let checks = of(&round_trips, CLAIM);
    assert!(checks >= 5, "{round_trips:?}");
    // With the claim and the record, four a minute; one check may be cut at either end.
    assert!(of(&round_trips, WORK) <= 2 * checks + 2, "{round_trips:?}");
    assert!(of(&round_trips, LAST_RECORD) <= checks + 1, "{round_trips:?}");
    let known = [CONTROL_POLL, CLAIM, LAST_RECORD, LATE, POOL, RENEWAL, CONNECTION, WORK];
    assert_nothing_else(&round_trips, &known);
}
