//! Which daemon holds a job when its holder blocks or is killed.

use billing_test_support::{Db, eventually, on_every_engine, process::Signal};
use sea_orm::DbBackend;

use crate::daemon::{TICK, daemon, fetch, job};

/// The shortest lease that is permitted.
const LEASE: &str = "[daemon]\nlease-ttl = \"3s\"\n";

fn once(kind: &str) -> String {
    job(kind, &format!("test.{kind}"), "365d", "run-at-start = true")
}

/// Leases are renewed from a thread that no job can block.
async fn blocked_threads_keep_the_lease(db: &Db) {
    let program = daemon(db, &[LEASE, &once("block")]);
    let blocking = program.start("run");
    blocking.wait_for_line("blocks every thread").await;
    let other = program.start("run");
    other.wait_for_line("runs block as").await;
    let runs = "SELECT count(*) || ' ' || coalesce(max(status), '') FROM scheduler_runs WHERE job = 'block'";
    eventually("the run is over", async || (fetch(db, runs).await == "1 done").then_some(())).await;
    assert!(other.lines_with("blocks every thread").is_empty(), "the other daemon took the job over");
    blocking.terminated().await.expect_code(0);
    other.terminated().await.expect_code(0);
}

/// A killed holder is replaced when its lease has expired; the occurrence starts again.
async fn job_of_killed_holder_is_taken_over(db: &Db) {
    let program = daemon(db, &[LEASE, &once("hangs-forever")]);
    let first = program.start("run");
    first.wait_for_line("hangs until the process ends").await;
    let second = program.start("run");
    second.wait_for_line("runs hangs-forever as").await;
    assert!(second.lines_with("hangs until the process ends").is_empty(), "one holder at a time");
    first.signal(Signal::KILL);
    second.wait_for_line("hangs until the process ends").await;
    second.signal(Signal::KILL);
}

/// A job that runs every second keeps its lease between two runs. The holder is killed there.
async fn lease_kept_between_runs_is_taken_over(db: &Db) {
    let program = daemon(db, &[LEASE, TICK]);
    let daemons = [program.start("run"), program.start("run")];
    let mut names = Vec::new();
    for daemon in &daemons {
        let line = daemon.wait_for_line(" runs tick as ").await;
        let name = line.split(" runs tick as ").nth(1).and_then(|rest| rest.split(',').next());
        names.push(name.expect("the line names the daemon").to_owned());
    }
    let done = async |what: &str, condition: &str| {
        let from = "FROM scheduler_runs WHERE job = 'tick' AND status = 'done'";
        fetch(db, &format!("SELECT {what} {from} {condition}")).await
    };
    let count = async || done("count(*)", "").await.parse::<u32>().expect("a number");
    eventually("three runs are done", async || (count().await >= 3).then_some(())).await;

    // The holder is suspended before it is killed, because it may hold nothing for some milliseconds after a run.
    let held = format!(
        "SELECT holder || ' ' || {} FROM scheduler_jobs WHERE job = 'tick'",
        micros(db, "expires_at")
    );
    let lease = async || fetch(db, &held).await;
    let (killed, expires_at) = eventually("a daemon holds the lease", async || {
        let now = lease().await;
        let holder = names.iter().position(|name| now.starts_with(&format!("{name} ")))?;
        daemons[holder].signal(Signal::STOP);
        if let Some(expires_at) = lease().await.strip_prefix(&names[holder]) {
            return Some((holder, expires_at.trim().parse::<i64>().expect("a time")));
        }
        daemons[holder].signal(Signal::CONT);
        None
    })
    .await;
    daemons[killed].signal(Signal::KILL);
    let (scheduled_at, started_at) = (micros(db, "scheduled_at"), micros(db, "started_at"));
    let last = done(&format!("max({scheduled_at})"), "").await;
    let since = format!("AND {scheduled_at} > {last}");
    eventually("the other daemon runs the job", async || {
        (done("count(*)", &since).await.parse::<u32>().expect("a number") >= 5).then_some(())
    })
    .await;

    let by_killed = format!("{since} AND daemon_id = '{}'", names[killed]);
    assert_eq!(done("count(*)", &by_killed).await, "0", "the killed daemon ran it");
    let began: i64 = done(&format!("min({started_at})"), &since).await.parse().expect("a time");
    assert!(began >= expires_at, "it was taken over {} us before the lease expired", expires_at - began);
    let twice = format!("count(*) - count(DISTINCT {scheduled_at})");
    assert_eq!(done(&twice, "").await, "0", "a scheduled time ran twice");
    let missing = format!("(max({scheduled_at}) - min({scheduled_at})) / 1000000 + 1 - count(*)");
    assert_eq!(done(&missing, "").await, "0", "a scheduled time did not run");
}

/// A time column in microseconds.
fn micros(db: &Db, column: &str) -> String {
    match db.backend() {
        DbBackend::Sqlite => column.to_owned(),
        _ => format!("(extract(epoch FROM {column}) * 1000000)::bigint"),
    }
}

on_every_engine!(
    blocked_threads_keep_the_lease,
    job_of_killed_holder_is_taken_over,
    lease_kept_between_runs_is_taken_over,
);
