//! Several daemons on one database.

use std::collections::BTreeSet;

use billing_test_support::{Db, eventually, on_every_engine, process::Signal};
use sea_orm::DbBackend;

use super::{
    BILLING, HANGS_FOREVER, HEARTBEAT, SHORT_LEASE, TICK, check_all_charged_once, daemon, fetch, rows, seed,
};

/// Runs of the original overlapped, and there was no lease and no panel guard.
async fn two_daemons_run_each_occurrence_once(db: &Db) {
    let organizations = seed(db, 4).await;
    let program = daemon(db, &[BILLING, HEARTBEAT, TICK]);
    let (one, other) = (program.start("run"), program.start("run"));
    one.wait_for_line("runs billing, heartbeat, tick as").await;
    other.wait_for_line("runs billing, heartbeat, tick as").await;
    let runs = "SELECT CASE WHEN count(*) > 4 THEN 'yes' END FROM scheduler_runs WHERE job = 'tick'";
    eventually("both had their chances", async || (fetch(db, runs).await == "yes").then_some(())).await;
    let ended = [one.terminated().await.expect_code(0), other.terminated().await.expect_code(0)];

    let ticks: Vec<&str> = ended
        .iter()
        .flat_map(|ended| &ended.out)
        .filter_map(|line| line.split_once("tick of ").map(|(_, at)| at))
        .collect();
    assert_eq!(ticks.len(), ticks.iter().collect::<BTreeSet<_>>().len(), "each ran once: {ticks:?}");
    let recorded =
        "SELECT count(DISTINCT scheduled_at) FROM scheduler_runs WHERE job = 'tick' AND status = 'done'";
    assert_eq!(fetch(db, recorded).await, ticks.len().to_string(), "and was recorded");
    assert_eq!(
        rows(db, "status || ' ' || items FROM scheduler_runs WHERE job = 'billing'").await,
        ["done 4"]
    );
    check_all_charged_once(db, &organizations).await;
}

/// The other daemon repeats the run that was in progress, and no scheduled time is skipped.
async fn other_daemon_continues(db: &Db, signal: Signal) {
    let held = HANGS_FOREVER.replace("runaway", "held").replace("hangs-forever", "waits-for-cancel");
    let program = daemon(db, &[SHORT_LEASE, &held, TICK]);
    let holder = program.start("run");
    holder.wait_for_line("waits until it is cancelled").await;
    let other = program.start("run");
    other.wait_for_line("runs held, tick as").await;
    if signal == Signal::TERM {
        holder.interrupted().await.expect_code(0);
    } else {
        holder.signal(signal);
        assert_eq!(holder.ended().await.code, None);
    }
    other.wait_for_line("waits until it is cancelled").await;
    other.wait_for_lines("tick of", 3).await;
    other.interrupted().await.expect_code(0);

    let occurrences = "SELECT count(DISTINCT scheduled_at) FROM scheduler_runs WHERE job = 'held'";
    assert_eq!(fetch(db, occurrences).await, "1", "it is the same occurrence");
    let seconds = match db.backend() {
        DbBackend::Sqlite => "(max(scheduled_at) - min(scheduled_at)) / 1000000 + 1",
        _ => "extract(epoch FROM max(scheduled_at) - min(scheduled_at))::bigint + 1",
    };
    let ticks = format!(
        "count(*) || ' of ' || ({seconds}) FROM scheduler_runs WHERE job = 'tick' AND status = 'done'"
    );
    let found = rows(db, &ticks).await.remove(0);
    let (done, due) = found.split_once(" of ").expect("two numbers");
    assert_eq!(done, due, "each second is done once");
}

async fn other_daemon_continues_after_kill(db: &Db) {
    other_daemon_continues(db, Signal::KILL).await;
}

async fn other_daemon_continues_after_clean_stop(db: &Db) {
    other_daemon_continues(db, Signal::TERM).await;
}

on_every_engine!(
    two_daemons_run_each_occurrence_once,
    other_daemon_continues_after_kill,
    other_daemon_continues_after_clean_stop,
);
