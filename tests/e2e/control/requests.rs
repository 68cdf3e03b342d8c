//! Pause, resume, trigger, cancel and replay on the command line.

use std::time::{Duration, Instant};

use billing_test_support::{Db, Login, Pooler, eventually, on_every_engine};
use sea_orm::DbBackend;

use super::{
    BROKEN, WAITS_FOR_CANCEL, history, run_json, started, text, until_a_second_begins, until_history_grew,
    until_history_has, with,
};
use crate::daemon::{TICK, fetch};

async fn paused_job_runs_nothing_until_resumed(db: &Db) {
    // A second job shows that the daemon continues, and how long.
    let program = with(db, &[TICK, &TICK.replace("\"tick\"", "\"other\"")]);
    let daemon = started(&program).await;
    until_history_has(&program, "tick", "done schedule").await;
    let paused = run_json(&program, "jobs pause tick --reason tea --as grace").await;
    assert_eq!(paused["changed"], true);
    let again = run_json(&program, "jobs pause tick --reason coffee").await;
    assert_eq!(again["changed"], false);
    assert!(text(&again["about"]).contains("paused by grace: tea"), "{again}");
    // A run that had begun already continues.
    until_history_grew(&program, "other", 2).await;
    let job = &run_json(&program, "jobs show tick").await;
    assert_eq!((text(&job["state"]), job["late_seconds"].is_null()), ("paused", true));
    let rows = history(&program, "tick").await.len();
    until_history_grew(&program, "other", 3).await;
    assert_eq!(history(&program, "tick").await.len(), rows, "nothing ran meanwhile");
    run_json(&program, "jobs resume tick").await;
    until_history_has(&program, "tick", "paused schedule").await;
    let all = history(&program, "tick").await;
    let rows_of_it: Vec<_> = all.iter().filter(|row| row.starts_with("paused")).collect();
    let count: u32 = rows_of_it[0].rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a count");
    assert!(rows_of_it.len() == 1 && count > 1, "one row for all the seconds: {all:?}");
    daemon.terminated().await.expect_code(0);
    let doubles = "SELECT count(*) - count(DISTINCT scheduled_at) FROM scheduler_runs WHERE job = 'tick'";
    assert_eq!(fetch(db, doubles).await, "0");
}

async fn manual_run_is_awaited_and_printed(db: &Db) {
    let program = with(db, &[TICK, WAITS_FOR_CANCEL, BROKEN]);
    let daemon = started(&program).await;
    run_json(&program, "jobs pause tick --reason tea").await;
    let refused = program.run("jobs trigger tick --wait").await.expect_code(64);
    assert!(
        refused.err[0].contains("paused by ada@") && refused.err[0].contains("--force"),
        "{}",
        refused.text()
    );
    let done = run_json(&program, "jobs trigger tick --force --wait --reason see").await;
    let run = &done["run"];
    assert_eq!((text(&run["status"]), text(&run["cause"])), ("done", "manual"));
    assert!(text(&run["reason"]).starts_with("requested by ada@"), "{run}");
    let shown = run_json(&program, &format!("runs show {}", text(&run["id"]))).await;
    assert_eq!(&shown, run);
    let failed = program.run("jobs trigger broken --wait").await.expect_code(1);
    assert!(
        failed.out[0].contains("dead, 0 items in") && failed.out[0].contains("broken as designed"),
        "{}",
        failed.text()
    );
    assert_eq!(history(&program, "broken").await, ["dead manual 1"]);
    daemon.terminated().await.expect_code(0);
}

async fn cancelled_run_is_not_repeated(db: &Db) {
    let program = with(db, &[WAITS_FOR_CANCEL]);
    let daemon = started(&program).await;
    // While the daemon plans the job, it holds its lease, and that claim could be cancelled.
    let planned = "SELECT count(*) FROM scheduler_jobs WHERE job = 'sleeper' AND holder IS NULL AND schedule IS NOT NULL";
    billing_test_support::eventually("the job is planned", async || {
        (crate::daemon::fetch(db, planned).await == "1").then_some(())
    })
    .await;
    let nothing = run_json(&program, "jobs cancel sleeper").await;
    assert_eq!(
        (&nothing["changed"], text(&nothing["about"])),
        (&false.into(), "nothing to do: no daemon runs it")
    );
    run_json(&program, "jobs trigger sleeper").await;
    daemon.wait_for_line("waits until it is cancelled").await;
    assert_eq!(text(&run_json(&program, "jobs show sleeper").await["state"]), "running");
    run_json(&program, "jobs trigger sleeper").await;
    run_json(&program, "jobs cancel sleeper --reason enough").await;
    daemon.wait_for_line("cancelled: the run was cancelled").await;
    until_history_has(&program, "sleeper", "interrupted manual").await;
    let run = &run_json(&program, "runs list --job sleeper").await[0];
    assert!(text(&run["reason"]).ends_with(": enough") && run["items"] == 3, "{run}");
    daemon.terminated().await.expect_code(0);
    assert_eq!(history(&program, "sleeper").await.len(), 1, "requests before the cancellation are withdrawn");
}

async fn replay_of_done_run_needs_force(db: &Db) {
    let jobs = BROKEN.replace("\"365d\" }", "\"365d\" }\nrun-at-start = true");
    let program = with(db, &[&jobs, TICK]);
    let daemon = started(&program).await;
    until_history_has(&program, "broken", "dead schedule").await;
    let dead = &run_json(&program, "runs list --job broken --status dead").await[0];
    let at = text(&dead["scheduled_at"]);
    program.run(&format!("jobs replay broken {at} --wait")).await.expect_code(1);
    assert_eq!(history(&program, "broken").await, ["dead replay 1", "dead schedule 1"]);

    until_history_has(&program, "tick", "done schedule").await;
    let done = &run_json(&program, "runs list --job tick --status done --limit 1").await[0];
    let at = text(&done["scheduled_at"]);
    let refused = program.run(&format!("jobs replay tick {at}")).await.expect_code(64);
    assert!(refused.err[0].ends_with("run it once more with --again"), "{}", refused.text());
    let listed = program.run("runs list --job tick --status done --limit 0").await.expect_code(0);
    assert!(listed.text().contains(at), "{at}: {}", listed.text());
    run_json(&program, &format!("jobs replay tick {at} --again --wait")).await;
    until_history_has(&program, "tick", "done replay").await;
    let explained = program.run(&format!("jobs explain tick --at {at}")).await.expect_code(0);
    let answer = format!("tick of {at}: done, ");
    assert!(explained.out[0].starts_with(&answer), "{}", explained.text());
    assert_eq!(explained.text().matches("tick of").count(), 1, "{}", explained.text());
    let refused = program.run("jobs replay broken 2026-01-01T00:00:01Z").await.expect_code(64);
    assert!(refused.err[0].contains("is not a scheduled time of `broken`"), "{}", refused.text());
    let refused = program.run("jobs replay tick 2199-01-01T00:00:00Z").await.expect_code(64);
    assert!(refused.err[0].contains("is in the future"), "{}", refused.text());
    daemon.terminated().await.expect_code(0);
}

/// As if its newest run had been made while the clock was a day ahead.
async fn cursor_in_future_waits_until_reset(db: &Db) {
    let program = with(db, &[TICK]);
    let daemon = started(&program).await;
    until_history_has(&program, "tick", "done schedule").await;
    daemon.terminated().await.expect_code(0);
    let a_day = if db.backend() == DbBackend::Sqlite { "86400000000" } else { "interval '1 day'" };
    db.execute(&format!(
        "UPDATE scheduler_jobs SET cursor_at = cursor_at + {a_day}, next_at = next_at + {a_day},
                                      late_at = late_at + {a_day}, stuck_at = stuck_at + {a_day}"
    ))
    .await;
    db.execute(&format!(
        "UPDATE scheduler_runs SET scheduled_at = scheduled_at + {a_day}
          WHERE id = (SELECT id FROM scheduler_runs ORDER BY started_at DESC LIMIT 1)"
    ))
    .await;
    let daemon = started(&program).await;
    daemon.wait_for_line("job `tick` waits until").await;
    let status = program.run("status --json").await;
    assert!(status.text().contains("\"job_ahead\""), "{}", status.text());
    let doctor = program.run("doctor").await;
    assert!(doctor.text().contains("jobs reset tick --reason"), "{}", doctor.text());
    let before = history(&program, "tick").await.len();
    assert_eq!(run_json(&program, "jobs reset tick --reason corrected").await["changed"], true);
    until_history_has(&program, "tick", "skipped manual").await;
    eventually("it runs again", async || (history(&program, "tick").await.len() > before + 2).then_some(()))
        .await;
    daemon.wait_for_line("job `tick` follows its schedule again").await;
    assert_eq!(daemon.lines_with("job `tick` waits until").len(), 1, "once");
    let recorded = crate::daemon::rows(db, "reason FROM scheduler_audit_log WHERE action = 'reset'").await;
    assert!(recorded.len() == 1 && recorded[0].contains("corrected"), "{recorded:?}");
    assert_eq!(run_json(&program, "jobs reset tick --reason again").await["changed"], false);
    daemon.terminated().await.expect_code(0);
}

/// No daemon runs, so no request may be answered.
async fn request_without_daemon_is_reported(db: &Db) {
    let program = with(db, &[TICK]);
    let accepted = program.run("jobs trigger tick").await.expect_code(0);
    assert!(accepted.out[0].contains("no daemon is alive: start one"), "{}", accepted.text());
    assert_eq!(run_json(&program, "jobs trigger tick").await["daemons_alive"], 0);
    let waiting = program.start("jobs trigger tick --wait");
    waiting.wait_for_line("no daemon is alive").await;
    // It is known although it has no heartbeat job.
    let daemon = started(&program).await;
    waiting.ended().await.expect_code(0);
    eventually("the daemon is known", async || {
        (run_json(&program, "jobs trigger tick").await["daemons_alive"] == 1).then_some(())
    })
    .await;
    let accepted = program.run("jobs trigger tick").await.expect_code(0);
    assert!(accepted.out[0].contains("starts it within 2s"), "{}", accepted.text());
    daemon.terminated().await.expect_code(0);
}

on_every_engine!(
    cursor_in_future_waits_until_reset,
    request_without_daemon_is_reported,
    paused_job_runs_nothing_until_resumed,
    manual_run_is_awaited_and_printed,
    cancelled_run_is_not_repeated,
    replay_of_done_run_needs_force,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_pooler_permits_job_control() {
    let db = Db::g1_role().await;
    let pooler = Pooler::start(2);
    let program = with(&db, &[TICK, WAITS_FOR_CANCEL]).env("DATABASE_URL", &pooler.url(&db, Login::Billing));
    let daemons = [started(&program).await, started(&program).await];
    run_json(&program, "jobs pause tick --reason tea").await;
    let run = run_json(&program, "jobs trigger tick --force --wait").await;
    assert_eq!(text(&run["run"]["status"]), "done");
    // A scheduled time passes while it is paused.
    until_a_second_begins(&db).await;
    run_json(&program, "jobs resume tick").await;
    let resumed = Instant::now();
    until_history_has(&program, "tick", "paused schedule").await;
    // The pause was shorter than the interval of polls; a daemon whose claim has met it checks again after a minute.
    assert!(
        resumed.elapsed() < Duration::from_secs(40),
        "a poll wakes the resumed job: {:?}",
        resumed.elapsed()
    );
    for daemon in daemons {
        let ended = daemon.terminated().await.expect_code(0);
        for wrong in ["prepared statement", "[ERROR]", "cannot poll the store for control requests"] {
            assert!(!ended.text().contains(wrong), "{}", ended.text());
        }
    }
}

#[tokio::test]
async fn unknown_job_is_rejected_with_suggestion() {
    let db = Db::sqlite().await;
    let program = with(&db, &[TICK]);
    for command in ["show", "resume", "cancel", "trigger", "explain", "pause --reason tea"] {
        let refused = program.run(&format!("jobs {command} tock")).await.expect_code(64);
        let output = "error: neither the database nor jobs.toml has a job `tock`, did you mean `tick`?";
        assert_eq!(refused.err, [output], "{command}");
    }
    let refused = program.run("jobs next tock").await.expect_code(64);
    assert_eq!(refused.err, ["error: jobs.toml has no enabled job `tock`, did you mean `tick`?"]);
    let refused = program.run("runs show 0199a6b2-7c1e-7d30-9c1f-2b7f0d8e4a55").await.expect_code(64);
    assert!(refused.err[0].starts_with("error: there is no run 0199a6b2"), "{}", refused.text());
    let refused = program.run("jobs pause tick").await.expect_code(64);
    assert!(refused.text().contains("--reason <TEXT>"), "{}", refused.text());
}
