//! A database whose clock jumps, in both directions, and hosts whose clocks differ from the database's.

use std::{fs, path::Path};

use billing_scheduler::{Clock as _, SystemClock};
use billing_test_support::{
    Db, Login, Panel, Postgres, Program, Running, eventually, find_faketime, process::Signal,
};
use serde_json::Value;

use crate::{
    commands::http::{address, get},
    daemon::{
        BILLING, HEARTBEAT, HOURS, TICK, check_all_charged_once, check_audit, daemon, fetch, rows, seed,
    },
};

const LEASE: &str = "[daemon]\nlease-ttl = \"3s\"\n";
const EVERY_SECOND: &str = r#"
[[job]]
name = "billing"
kind = "billing"
schedule = { every = "1s" }
run-at-start = true
"#;
const EVERY_HOUR: &str = r#"
[[job]]
name = "billing"
kind = "billing"
schedule = { every = "1h" }
run-at-start = true
"#;
const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";
const HOUR: i64 = 3_600;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_clock_changes_never_charge_early() {
    let server = Postgres::with_clock().await;
    let db = Db::on_server(server, Panel::G3, Login::Billing).await;
    let instances = i64::try_from(seed(&db, 3).await.len()).expect("a few");
    let daemon = daemon(&db, &[LEASE, EVERY_SECOND]).start("run");
    let mut latest = 0;
    for offset in [0, 2, 0, -26, 1, 4, 3, 5] {
        server.set_clock(offset * HOUR);
        two_more_runs(&db).await;
        latest = latest.max(offset);
        let charged = fetch(&db, "SELECT sum(hours) FROM billing_charges").await;
        let expected = instances * (HOURS + latest);
        assert_eq!(charged, expected.to_string(), "with the clock moved by {offset} h");
        let early = "SELECT count(*) FROM billing_charges c JOIN billing_batches b ON b.id = c.batch_id
                      WHERE c.period_start + c.hours * interval '1 hour' > b.as_of";
        assert_eq!(fetch(&db, early).await, "0", "hours to come are charged at {offset} h");
    }
    daemon.terminated().await.expect_code(0);
    check_audit(&db).await;
    server.take_away();
}

async fn two_more_runs(db: &Db) {
    let runs = "SELECT count(*) FROM scheduler_runs WHERE job = 'billing' AND status = 'done'";
    let before: u64 = fetch(db, runs).await.parse().expect("a count");
    let more = async || {
        let now: u64 = fetch(db, runs).await.parse().expect("a count");
        (now >= before + 2).then_some(())
    };
    eventually("two more runs are done", more).await;
}

/// The lease of a daemon that died then ends tomorrow by the database's clock, and no daemon waits for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_lease_after_clock_rollback_is_claimed() {
    let server = Postgres::with_clock().await;
    let db = Db::on_server(server, Panel::G3, Login::Billing).await;
    let organizations = seed(&db, 3).await;
    let program = daemon(&db, &[LEASE, BILLING]);
    let holder = program.clone().env("BILLING_LINGER_MS", "60000").start("run");
    let held = "SELECT count(*) FROM scheduler_jobs WHERE job = 'billing' AND holder IS NOT NULL";
    eventually("a daemon bills", async || (fetch(&db, held).await == "1").then_some(())).await;
    holder.signal(Signal::KILL);
    holder.ended().await;
    // Between the hours of the fleet: as much is due as before.
    server.set_clock(-600);
    let successor = program.start("run");
    successor.wait_for_line("job `billing` done").await;
    successor.terminated().await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
    server.take_away();
}

/// A lease that ends early by the database's clock is claimed by another daemon, and its old holder commits nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_jump_ends_lease_without_double_charges() {
    let server = Postgres::with_clock().await;
    let db = Db::on_server(server, Panel::G3, Login::Billing).await;
    let organizations = seed(&db, 4).await;
    let program = daemon(&db, &[LEASE, BILLING]);
    let slow = program.clone().env("BILLING_LINGER_MS", "1500").start("run");
    let charges = "SELECT count(*) FROM billing_charges";
    eventually("the first one is billed", async || (fetch(&db, charges).await != "0").then_some(())).await;
    server.set_clock(600);
    let quick = program.start("run");
    quick.wait_for_line("job `billing` done").await;
    slow.wait_for_line("another daemon").await;
    slow.terminated().await.expect_code(0);
    quick.terminated().await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
    let back = "SELECT count(*) FROM (SELECT fencing_token < lag(fencing_token) OVER (ORDER BY id) AS back FROM billing_batches) x WHERE back";
    assert_eq!(fetch(&db, back).await, "0", "fencing tokens never decrease in the order of commits");
    server.take_away();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_behind_bills_by_the_database_clock() {
    wrong_host_clock(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_ahead_bills_by_the_database_clock() {
    wrong_host_clock(-2).await;
}

/// Bills on a host whose clock is `behind` hours behind that of the database, or ahead of it.
async fn wrong_host_clock(behind: i64) {
    let server = Postgres::with_clock().await;
    // The database's clock shows half past an hour.
    let offset = behind * HOUR + HOUR / 2 - SystemClock.now().timestamp() % HOUR;
    server.set_clock(offset);
    let db = Db::on_server(server, Panel::G3, Login::Billing).await;
    let instances = i64::try_from(seed(&db, 3).await.len()).expect("a few");
    let program = daemon(&db, &[HTTP, LEASE, EVERY_HOUR, HEARTBEAT]);
    let running = program.start("run");
    let hour_of_database = "extract(epoch FROM date_trunc('hour', now()))::bigint::text";
    let hour: i64 = fetch(&db, hour_of_database).await.parse().expect("an hour");
    billed_at(&db, &[hour]).await;
    assert_eq!(charged_hours(&db).await, instances * HOURS);
    is_reported(&running, &program, offset).await;

    // The database fails over to a host whose clock is an hour ahead of the former one, and back.
    server.set_clock(offset + HOUR);
    billed_at(&db, &[hour, hour + HOUR]).await;
    assert_eq!(charged_hours(&db).await, instances * (HOURS + 1));
    server.set_clock(offset);
    running.wait_for_line("job `billing` waits until").await;
    let reset =
        "SELECT count(*) FROM scheduler_runs WHERE job = 'billing' AND reason LIKE 'the clock was set back%'";
    eventually("the schedule is reset", async || (fetch(&db, reset).await == "1").then_some(())).await;
    server.set_clock(0);
    running.wait_for_line("the clocks of this host and of the store agree again").await;
    assert_eq!(charged_hours(&db).await, instances * (HOURS + 1), "nothing twice, nothing early");
    assert_eq!(running.lines_with("the clock of this host is").len(), 3, "once for each change");
    running.terminated().await.expect_code(0);
    server.set_clock(offset + HOUR);
    check_audit(&db).await;
    server.take_away();
}

/// Waits until the runs of billing are those scheduled at these times, in seconds since 1970.
async fn billed_at(db: &Db, expected: &[i64]) {
    let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
    let runs = "extract(epoch FROM scheduled_at)::bigint::text FROM scheduler_runs
                 WHERE job = 'billing' AND status = 'done' AND started_at >= scheduled_at ORDER BY scheduled_at";
    eventually("billing runs", async || (rows(db, runs).await.len() >= expected.len()).then_some(())).await;
    assert_eq!(rows(db, runs).await, expected);
}

async fn charged_hours(db: &Db) -> i64 {
    fetch(db, "SELECT coalesce(sum(hours), 0) FROM billing_charges").await.parse().expect("a number of hours")
}

/// Checks that log, `status`, `doctor`, HTTP and metrics report a database whose clock is `offset` seconds ahead of the host's.
async fn is_reported(running: &Running, program: &Program, offset: i64) {
    let wrong = if offset > 0 { "behind" } else { "ahead of" };
    let line = running.wait_for_line("the clock of this host is").await;
    assert!(line.contains("WARN") && line.contains(&format!("{wrong} that of the store")), "{line}");
    let address = address(running).await;
    let text = program.run("status").await.expect_code(1).text();
    assert!(text.contains(&format!("{wrong} the database's")), "{text}");
    for json in [program.run("status --json").await.text(), get(&address, "/api/status").await.body] {
        let status: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
        let measured = status["daemons"][0]["clock_offset_ms"].as_i64().unwrap_or_else(|| panic!("{json}"));
        assert!((measured - offset * 1_000).abs() < 2_000, "{measured} ms instead of {offset} s");
        let kinds: Vec<_> =
            status["problems"].as_array().into_iter().flatten().map(|one| &one["kind"]).collect();
        assert_eq!(kinds, ["clock_offset"], "{json}");
    }
    assert_eq!(get(&address, "/readyz").await.status, 200, "billing works");
    // It is set at each tick.
    let measured = eventually("the offset is measured", async || {
        let metrics = get(&address, "/metrics").await.body;
        let gauge =
            metrics.lines().find_map(|line| line.strip_prefix("billing_daemon_clock_offset_seconds "));
        let gauge: f64 = gauge.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{metrics}"));
        (gauge != 0.0).then_some(gauge)
    });
    let (measured, offset) = (measured.await, f64::from(i32::try_from(offset).expect("hours")));
    assert!((measured - offset).abs() < 2.0, "{measured} s instead of {offset} s");
    let doctor = program.run("doctor").await.text();
    assert!(doctor.contains(&format!("{wrong} the database's")), "{doctor}");
}

/// Neither the scheduler nor its ticks depend on the host's wall clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_host_clock_disturbs_no_job() {
    let db = Db::g1_role().await;
    let library = find_faketime().expect("libfaketime is installed, as for the server with a clock");
    let program = daemon(&db, &[TICK]);
    let file = program.folder().join("clock");
    set_host_clock(&file, 0);
    let program = program
        .env("LD_PRELOAD", &library.to_string_lossy())
        .env("FAKETIME_TIMESTAMP_FILE", &file.to_string_lossy())
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let running = program.start("run");
    let done = "SELECT count(*) FROM scheduler_runs WHERE job = 'tick' AND status = 'done'";
    let count = async || fetch(&db, done).await.parse::<u64>().expect("a count");
    for hours in [0, -2, 2, 0] {
        set_host_clock(&file, hours * HOUR);
        let enough = count().await + 5;
        eventually("jobs run", async || (count().await >= enough).then_some(())).await;
    }
    running.terminated().await.expect_code(0);
    let wrong = "scheduled_at || ' ' || status || ' ' || lateness_ms FROM scheduler_runs
                  WHERE status <> 'done' OR lateness_ms > 10000 OR started_at NOT BETWEEN now() - interval '10 min' AND now()";
    assert_eq!(rows(&db, wrong).await, [""; 0]);
    let gaps = "SELECT count(*) - 1 - extract(epoch FROM max(scheduled_at) - min(scheduled_at))::int
                  FROM scheduler_runs";
    assert_eq!(fetch(&db, gaps).await, "0", "each second once");
}

fn set_host_clock(file: &Path, seconds: i64) {
    let new = file.with_extension("new");
    fs::write(&new, format!("{seconds:+}")).expect("a file in a folder of ours is written");
    fs::rename(new, file).expect("it replaces the old one");
}
