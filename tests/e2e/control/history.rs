//! The output of `jobs` and `runs`: next times, states, and why a job did not run.

use billing_test_support::{Db, eventually, on_every_engine};

use super::{
    BROKEN, WAITS_FOR_CANCEL, run_json, started, text, until_a_second_begins, until_history_has, with,
};
use crate::{
    commands::json,
    daemon::{HEARTBEAT, TICK, job, program},
};

#[tokio::test]
async fn next_times_need_no_job_or_database() {
    let bare = program();
    let berlin = "--timezone Europe/Berlin --count 3 --from 2027-03-27T00:00:00Z";
    let mut command = bare.command(&format!("jobs next --json {berlin}"));
    command.arg("--cron").arg("30 2 * * *");
    let output = command.output().await.expect("the program runs");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        r#"[{"scheduled_at":"2027-03-27T01:30:00Z"},{"scheduled_at":"2027-03-28T01:00:00Z"},{"scheduled_at":"2027-03-29T00:30:00Z"}]"#,
        "on the 28th half past two does not exist, and the first instant after the gap replaces it"
    );
    let ended =
        bare.run("jobs next --cron @hourly --from 2026-11-22T15:00:00Z --count 2").await.expect_code(0);
    assert_eq!(
        ended.out,
        ["at minute 0, in every hour, UTC", "2026-11-22T15:00:00Z", "2026-11-22T16:00:00Z"],
        "the instant itself counts"
    );
    for (arguments, output) in [
        ("", "name a job of jobs.toml, or a cron expression with --cron"),
        ("--cron @never", "`@never` is an unknown nickname, use @hourly, @daily"),
        ("--cron @daily --timezone Europe/Berln", "unknown time zone `Europe/Berln`"),
        ("--cron @daily --from yesterday", "use a time such as `2026-11-22T15:00:00Z`"),
        ("--cron @daily --count 0", "invalid value '0' for '--count <N>'"),
        ("--timezone UTC", "--cron <TEXT>"),
    ] {
        let refused = bare.run(&format!("jobs next {arguments}")).await.expect_code(64);
        assert!(refused.text().contains(output), "{arguments}: {}", refused.text());
        assert!(refused.out.is_empty(), "{arguments}: {}", refused.text());
    }
    let of_job = bare.file("jobs.toml", TICK).env("DATABASE_URL", "sqlite://billing.db");
    let ended = of_job.run("jobs next tick --from 2026-11-22 --count 1 --json").await.expect_code(0);
    assert_eq!(json(&ended)[0]["scheduled_at"], "2026-11-22T00:00:00Z");
}

async fn jobs_are_listed_with_their_state(db: &Db) {
    let jobs = BROKEN.replace("\"365d\" }", "\"365d\" }\nrun-at-start = true");
    let program = with(db, &[TICK, WAITS_FOR_CANCEL, HEARTBEAT, &jobs]);
    let before = run_json(&program, "jobs list").await;
    let states: Vec<_> = before.as_array().expect("a list").iter().map(|job| text(&job["state"])).collect();
    assert_eq!(states, ["waiting"; 4], "before anything ran");
    let daemon = started(&program).await;
    until_history_has(&program, "broken", "dead schedule").await;
    run_json(&program, "jobs pause heartbeat --reason tea").await;
    run_json(&program, "jobs trigger sleeper").await;
    daemon.wait_for_line("waits until it is cancelled").await;
    let listed = run_json(&program, "jobs list").await;
    let listed = listed.as_array().expect("a list");
    let short: Vec<_> = listed
        .iter()
        .map(|job| format!("{} {} {}", text(&job["job"]), text(&job["state"]), text(&job["schedule"])))
        .collect();
    assert_eq!(short[0], "broken waiting every 365d");
    assert_eq!(short[1], "heartbeat paused every 1s", "which each node runs");
    assert_eq!(short[2], "sleeper running every 365d");
    assert!(short[3].starts_with("tick "), "{short:?}");
    assert_eq!(listed[0]["last_run"]["error"], "broken as designed");
    let table = program.clone().env("COLUMNS", "80").run("jobs list").await.expect_code(0);
    assert!(table.out[0].starts_with("JOB        STATE    SCHEDULE    NEXT"), "{}", table.text());
    assert!(table.out.iter().all(|line| line.chars().count() <= 80), "{}", table.text());
    daemon.interrupted().await.expect_code(0);

    let fewer = with(db, &[TICK]);
    let gone = run_json(&fewer, "jobs show broken").await;
    assert_eq!(text(&gone["state"]), "not_configured");
    assert!(gone["runs"].as_array().is_some_and(|runs| !runs.is_empty()), "its history stays: {gone}");
}

async fn job_without_daemon_is_late(db: &Db) {
    let program = with(db, &[TICK, HEARTBEAT]);
    let daemon = started(&program).await;
    until_history_has(&program, "tick", "done schedule").await;
    let done = &run_json(&program, "runs list --job tick --status done --limit 1").await[0];
    let at = text(&done["scheduled_at"]);
    let answer = run_json(&program, &format!("jobs explain tick --at {at}")).await;
    assert_eq!(text(&answer["answer"]), "done", "{answer}");
    run_json(&program, "jobs pause tick --reason tea").await;
    eventually("the pause explains it", async || {
        let answer = run_json(&program, "jobs explain tick").await;
        (text(&answer["answer"]) == "paused").then_some(())
    })
    .await;
    until_a_second_begins(db).await;
    run_json(&program, "jobs resume tick").await;
    until_history_has(&program, "tick", "paused schedule").await;
    daemon.terminated().await.expect_code(0);
    let past = match db.backend() {
        sea_orm::DbBackend::Sqlite => "CAST(unixepoch('now') * 1000000 AS INTEGER) - 61000000",
        _ => "now() - interval '61 s'",
    };
    db.execute(&format!("UPDATE scheduler_jobs SET late_at = {past} WHERE job = 'tick'")).await;
    let job = run_json(&program, "jobs show tick").await;
    assert_eq!(
        (text(&job["state"]), job["late_seconds"].is_u64()),
        ("late", true),
        "the rows show it, without a daemon"
    );
    eventually("no daemon is alive", async || {
        let answer = run_json(&program, "jobs explain tick").await;
        (text(&answer["answer"]) == "no_daemon").then_some(())
    })
    .await;
    let future = run_json(&program, "jobs explain tick --at 2199-01-01T00:00:00Z").await;
    assert_eq!(text(&future["answer"]), "not_yet");
}

async fn late_job_is_reported_for_any_cause(db: &Db) {
    // A job that each node runs has a row from when it did not.
    let own = TICK.replace("\"tick\"", "\"own\"") + "scope = \"node\"\n";
    let program = with(db, &["[daemon]\nlease-ttl = \"3s\"\n", TICK, &own]);
    let daemon = started(&program).await;
    until_history_has(&program, "tick", "done schedule").await;
    // Another process has the job, renews its lease, and does nothing.
    let (far, past) = match db.backend() {
        sea_orm::DbBackend::Sqlite => ("9999999999999999", "1"),
        _ => ("now() + interval '1 day'", "timestamptz 'epoch'"),
    };
    let stuck = format!(
        "UPDATE scheduler_jobs SET holder = 'stuck', fencing_token = fencing_token + 1, expires_at = {far}, next_at = {past},
                late_at = {past}, stuck_at = {past} WHERE job = 'tick'"
    );
    db.execute(&format!(
        "INSERT INTO scheduler_jobs (job, cursor_at, schedule, next_at, late_at, stuck_at)
         VALUES ('own', {past}, 'every 1s', {past}, {past}, {past})"
    ))
    .await;
    // A daemon that does not renew is replaced, so it renews.
    eventually("it is reported", async || {
        db.execute(&stuck).await;
        (!daemon.lines_with("is late").is_empty()).then_some(())
    })
    .await;
    let line = daemon.wait_for_line("is late").await;
    assert!(
        line.contains("[ERROR]") && line.contains("the run of stuck that was due at 1970-01-01"),
        "{line}"
    );
    assert!(
        daemon.lines_with("`own` is late").is_empty(),
        "a job that each node runs has no row of this kind"
    );
    daemon.terminated().await.expect_code(0);
}

/// Old rows and excess rows are deleted; the newest of a job, and its newest done one, stay.
async fn history_is_pruned_to_limits(db: &Db) {
    let days_ago = |days: u32| match db.backend() {
        sea_orm::DbBackend::Sqlite => {
            format!("CAST(unixepoch('now') * 1000000 AS INTEGER) - {days} * 86400000000")
        }
        _ => format!("now() - {days} * interval '1 day'"),
    };
    let mut row = 0;
    for (job, status, days) in [
        ("quiet", "done", 400),
        ("quiet", "dead", 300),
        ("quiet", "dead", 200),
        ("busy", "done", 91),
        ("busy", "done", 89),
        ("busy", "done", 3),
        ("busy", "done", 2),
        ("busy", "done", 1),
    ] {
        row += 1;
        let at = days_ago(days);
        db.execute(&format!(
            "INSERT INTO scheduler_runs (id, job, scheduled_at, status, fencing_token, daemon_id, started_at, finished_at)
             VALUES ('00000000-0000-4000-8000-00000000000{row}', '{job}', {at}, '{status}', 1, 'x', {at}, {at})"
        ))
        .await;
    }
    let prune = |rows| job("prune", "prune-history", "365d", &format!("params = {{ keep-rows = {rows} }}"));
    let left = async || {
        let left = "job || ' ' || status || ' ' || count(*) FROM scheduler_runs WHERE job <> 'prune' GROUP BY job, status ORDER BY 1";
        crate::daemon::rows(db, left).await
    };
    for (rows, pruned, remain) in [
        (100, 2, ["busy done 4", "quiet dead 1", "quiet done 1"]),
        (3, 1, ["busy done 3", "quiet dead 1", "quiet done 1"]),
        // The job prunes its own history, too: of its two rows the older one.
        (1, 3, ["busy done 1", "quiet dead 1", "quiet done 1"]),
    ] {
        let program = with(db, &[&prune(rows)]);
        let daemon = started(&program).await;
        let run = run_json(&program, "jobs trigger prune --wait").await;
        assert_eq!(
            (&run["run"]["items"], left().await),
            (&pruned.into(), remain.map(str::to_owned).to_vec())
        );
        daemon.terminated().await.expect_code(0);
    }
}

/// Old events go with their deliveries. Those that an operator must see and the newest order of an organization stay.
async fn old_events_are_pruned(db: &Db) {
    let (old, new) = match db.backend() {
        sea_orm::DbBackend::Sqlite => ("1", "CAST(unixepoch('now') * 1000000 AS INTEGER)"),
        _ => ("to_timestamp(1)", "now()"),
    };
    let org = uuid::Uuid::new_v4();
    db.execute(&format!(
        "INSERT INTO billing_standings (organization_id, state, since, watched, episode, order_number, desired, evaluated_at)
         VALUES ('{org}', 'low', {old}, true, 0, 6, 'running', {old})"
    ))
    .await;
    for (number, at, order_number, status) in [
        (1, old, "NULL", Some("sent")),
        (2, old, "NULL", Some("superseded")),
        (3, old, "NULL", Some("dead")),
        (4, old, "NULL", Some("pending")),
        (5, old, "5", Some("cancelled")),
        (6, old, "6", Some("sent")),
        (7, old, "NULL", None),
        (8, new, "NULL", Some("sent")),
    ] {
        let id = format!("00000000-0000-7000-8000-00000000000{number}");
        db.execute(&format!(
            "INSERT INTO billing_events (id, type, organization_id, order_number, body, created_at)
             VALUES ('{id}', 'billing.wallet.low', '{org}', {order_number}, '{{}}', {at})"
        ))
        .await;
        if let Some(status) = status {
            let sent = if status == "sent" { at } else { "NULL" };
            db.execute(&format!(
                "INSERT INTO billing_deliveries (event_id, endpoint, needed, status, next_at, sent_at)
                 VALUES ('{id}', 'mail', true, '{status}', {at}, {sent})"
            ))
            .await;
        }
    }
    let program = with(db, &[&job("prune", "prune-history", "365d", "params = { keep = '90d' }")]);
    let daemon = started(&program).await;
    let run = run_json(&program, "jobs trigger prune --wait").await;
    assert_eq!(run["run"]["items"], 4, "{run}");
    let left = crate::daemon::rows(db, "substr(CAST(id AS text), 36) FROM billing_events ORDER BY 1").await;
    assert_eq!(left, ["3", "4", "6", "8"]);
    let left = crate::daemon::rows(db, "status FROM billing_deliveries ORDER BY event_id").await;
    assert_eq!(left, ["dead", "pending", "sent", "sent"]);
    daemon.terminated().await.expect_code(0);
}

on_every_engine!(
    old_events_are_pruned,
    history_is_pruned_to_limits,
    jobs_are_listed_with_their_state,
    job_without_daemon_is_late,
    late_job_is_reported_for_any_cause,
);
