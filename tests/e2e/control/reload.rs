//! jobs.toml edited under a running daemon.

use billing_test_support::{Db, eventually, on_every_engine, process::Signal};
use serde_json::Value;

use super::{
    WAITS_FOR_CANCEL, history, run_json, started, text, until_a_second_begins, until_history_has, with,
};
use crate::daemon::{BILLING, HEARTBEAT, TICK, with_panel_billing_off};

const YEARLY: &str = r#"
[[job]]
name = "tick"
kind = "test.tick"
schedule = { every = "365d" }
"#;

async fn edited_file_applies_without_disturbing_runs(db: &Db) {
    let program = with(db, &[YEARLY, WAITS_FOR_CANCEL]);
    let daemon = started(&program).await;
    run_json(&program, "jobs trigger sleeper").await;
    daemon.wait_for_line("waits until it is cancelled").await;
    let edited = [
        TICK,
        WAITS_FOR_CANCEL,
        "\n[[job]]\nname = \"second\"\nkind = \"test.tick\"\nschedule = { every = \"1s\" }\n",
    ];
    let program = program.file("jobs.toml", &edited.concat());
    daemon.wait_for_line("jobs.toml: second: added").await;
    daemon.wait_for_line("jobs.toml: tick: schedule every 365d -> every 1s").await;
    daemon.wait_for_line("jobs.toml is in force").await;
    let record = eventually("it is in the audit log", async || {
        crate::daemon::rows(db, "details FROM scheduler_audit_log WHERE action = 'reload'").await.pop()
    })
    .await;
    assert!(record.contains("tick: schedule every 365d -> every 1s"), "{record}");
    until_history_has(&program, "tick", "done schedule").await;
    until_history_has(&program, "second", "done schedule").await;
    assert_eq!(
        text(&run_json(&program, "jobs show sleeper").await["state"]),
        "running",
        "it noticed nothing"
    );

    let program = program.file("jobs.toml", &[YEARLY, WAITS_FOR_CANCEL].concat());
    daemon.wait_for_line("jobs.toml: second: removed").await;
    daemon.wait_for_line("jobs.toml: tick: schedule every 1s -> every 365d").await;
    eventually("nothing is expected of either", async || {
        let due = "SELECT count(*) FROM scheduler_jobs
                    WHERE job = 'second' AND (late_at IS NOT NULL OR holder IS NOT NULL)
                       OR job = 'tick' AND (schedule <> 'every 365d' OR holder IS NOT NULL)";
        (crate::daemon::fetch(db, due).await == "0").then_some(())
    })
    .await;
    let runs = async || (history(&program, "second").await.len(), history(&program, "tick").await.len());
    let before = runs().await;
    until_a_second_begins(db).await;
    assert_eq!(text(&run_json(&program, "jobs show sleeper").await["state"]), "running");
    run_json(&program, "jobs cancel sleeper").await;
    until_history_has(&program, "sleeper", "interrupted manual").await;
    assert_eq!(runs().await, before, "what was removed, or comes once in a year, runs no more");
    daemon.terminated().await.expect_code(0);
}

#[tokio::test]
async fn deleted_configuration_is_logged_once() {
    let db = Db::sqlite().await;
    let program = with(&db, &[TICK]);
    let daemon = started(&program).await;
    std::fs::remove_file(program.folder().join("jobs.toml")).expect("our own file");
    daemon.wait_for_line("jobs.toml does not exist any more").await;
    let ticks = daemon.lines_with("tick of ").len();
    daemon.wait_for_lines("tick of ", ticks + 3).await;
    let ended = daemon.terminated().await.expect_code(0);
    let lines = ended.text().lines().filter(|line| line.contains("does not exist any more")).count();
    assert_eq!(lines, 1, "{}", ended.text());
}

async fn reload_with_billing_updates_status_row(db: &Db) {
    let program = with(db, &[TICK, HEARTBEAT]);
    let daemon = started(&program).await;
    let interval = "SELECT metadata ->> 'billingIntervalMinutes' FROM billing_daemon_status";
    until_history_has(&program, "heartbeat", "done schedule").await;
    assert_eq!(crate::daemon::fetch(db, interval).await, "-", "it has no billing");
    let _program = program.file("jobs.toml", &with_panel_billing_off(db, &[BILLING, HEARTBEAT].concat()));
    daemon.wait_for_line("jobs.toml is in force").await;
    eventually("its row has the interval", async || {
        (crate::daemon::fetch(db, interval).await == (365 * 24 * 60).to_string()).then_some(())
    })
    .await;
    daemon.terminated().await.expect_code(0);
}

async fn new_schedule_runs_no_past_times(db: &Db) {
    let program = with(db, &[YEARLY]);
    let daemon = started(&program).await;
    eventually("it has begun", async || {
        let plan = crate::daemon::fetch(db, "SELECT schedule FROM scheduler_jobs WHERE job = 'tick'").await;
        (plan == "every 365d").then_some(())
    })
    .await;
    // As if it had been in force for a minute.
    let minute_ago = match db.backend() {
        sea_orm::DbBackend::Sqlite => "cursor_at - 60000000",
        _ => "cursor_at - interval '1 minute'",
    };
    db.execute(&format!("UPDATE scheduler_jobs SET cursor_at = {minute_ago}")).await;
    let program = program.file("jobs.toml", TICK);
    daemon.wait_for_line("jobs.toml is in force").await;
    until_history_has(&program, "tick", "done schedule").await;
    let all = history(&program, "tick").await;
    let first = all.last().expect("it has rows");
    let count: u32 = first.rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a count");
    assert!(first.starts_with("rescheduled schedule") && count >= 60, "{all:?}");
    let runs = run_json(&program, "runs list --job tick --limit 0").await;
    let first = runs.as_array().and_then(|runs| runs.last()).expect("it has rows");
    assert_eq!(
        text(&first["reason"]),
        "the schedule was changed from every 365d to every 1s: nothing was due"
    );
    assert!(daemon.lines_with("skipped").is_empty(), "{:?}", daemon.lines_with("skipped"));
    daemon.terminated().await.expect_code(0);
}

/// Validation takes as long as a kind's parameters need, here longer than the scheduler waits for a tick.
async fn slow_validation_delays_no_run(db: &Db) {
    let slow = "\n[[job]]\nname = \"slow\"\nkind = \"test.slow-params\"\nschedule = { every = \"365d\" }\n\
                params = { validated-in-ms = 4000 }\n";
    let program = with(db, &[TICK]);
    let daemon = started(&program).await;
    until_history_has(&program, "tick", "done schedule").await;
    let program = program.file("jobs.toml", &[TICK, slow].concat());
    daemon.wait_for_lines("validates for 4000 ms", 2).await;
    // It is validated when it is read, and once more when the job is made.
    daemon.wait_for_line("jobs.toml: slow: added").await;
    let runs = run_json(&program, "runs list --job tick --limit 0").await;
    let late = |run: &&Value| run["lateness_ms"].as_i64().is_none_or(|lateness| lateness >= 1_000);
    let runs = runs.as_array().expect("a list");
    assert!(runs.len() > 7, "each second of the validation has a run: {runs:?}");
    assert!(!runs.iter().any(|run| late(&run)), "{runs:?}");
    daemon.terminated().await.expect_code(0);
}

on_every_engine!(
    slow_validation_delays_no_run,
    edited_file_applies_without_disturbing_runs,
    new_schedule_runs_no_past_times,
    reload_with_billing_updates_status_row,
);

#[tokio::test]
async fn invalid_file_changes_nothing() {
    let db = Db::sqlite().await;
    let program = with(&db, &[TICK]);
    let daemon = started(&program).await;
    let program = program.file("jobs.toml", &TICK.replace("every = \"1s\"", "every = \"soon\""));
    let line = daemon.wait_for_line("jobs.toml:5:22: `every`").await;
    assert!(line.contains("[ERROR]"), "{line}");
    daemon.wait_for_line("jobs.toml has 1 problem; everything stays as it was").await;
    let runs = history(&program, "tick").await.len();
    eventually("it continues", async || (history(&program, "tick").await.len() > runs).then_some(())).await;
    // By signal, a file is read at once, changed or not.
    daemon.signal(Signal::HUP);
    daemon.wait_for_lines("jobs.toml has 1 problem; everything stays as it was", 2).await;
    let settings =
        "[daemon]\nlease-ttl = \"7s\"\ndrain-timeout = \"5s\"\n[http]\nlisten = \"127.0.0.1:9464\"\n";
    let _program = program.file("jobs.toml", &[settings, TICK].concat());
    daemon.signal(Signal::HUP);
    daemon.wait_for_line("jobs.toml was read again: no job is different").await;
    daemon
        .wait_for_line(
            "jobs.toml: `lease-ttl` of [daemon], `listen` of [http] come into force at the next start",
        )
        .await;
    let ended = daemon.terminated().await.expect_code(0);
    assert!(ended.text().contains("runs in progress continue for up to 5 s"), "{}", ended.text());
}
