//! `status`: its output for a healthy fleet, and for one with problems.

use billing_test_support::{
    Db, Ended, Fleet, Instance, Login, Plan, Program, eventually, on_every_engine, on_variants,
    process::Signal,
};
use chrono::TimeDelta;
use sea_orm::DbBackend;
use serde_json::{Value, json};

use super::{json, keys};
use crate::daemon::{
    BILLING, HEARTBEAT, SHORT_LEASE, check_all_charged_once, daemon, fetch, job, now, program, seed,
};

const DAILY: &str = r#"
[[job]]
name = "daily"
kind = "test.tick"
schedule = { every = "1d" }
"#;

async fn status(program: &Program, code: i32) -> Value {
    json(&program.run("status --json").await.expect_code(code))
}

/// The kinds of what is wrong.
fn problems(status: &Value) -> Vec<&str> {
    let problems = status["problems"].as_array().expect("a list").iter();
    problems.map(|problem| problem["kind"].as_str().expect("a word")).collect()
}

/// An instance that is on a plan without a price, and one whose wallet is empty.
async fn held(db: &Db) {
    let fleet = Fleet::new(db);
    let hours_ago = now(db).await - TimeDelta::minutes(150);
    let unpriced = fleet.plan(Plan::unpriced()).await;
    fleet.instance(Instance::new(fleet.wallet("1.00").await, unpriced, hours_ago)).await;
    let priced = fleet.plan(Plan::monthly("7.30")).await;
    fleet.instance(Instance::new(fleet.wallet("0.00").await, priced, hours_ago)).await;
}

async fn status_is_healthy_only_while_billing(db: &Db) {
    let program = daemon(db, &[BILLING, HEARTBEAT, DAILY]);
    seed(db, 2).await;
    let before = status(&program, 1).await;
    assert_eq!(problems(&before), ["no_daemon", "billing_silent"], "{before}");
    assert_eq!((&before["last_run"], &before["last_success_at"]), (&Value::Null, &Value::Null));

    let running = program.start("run");
    running.wait_for_line("job `billing` done").await;
    // The heartbeat of a process that has just started may have come before the end of its first run, whose row comes last.
    let well = eventually("billing is healthy", async || {
        let ended = program.run("status --json").await;
        (ended.code == Some(0)).then(|| json(&ended)).filter(|status| !status["last_run"].is_null())
    })
    .await;
    assert_eq!(
        keys(&well),
        [
            "arrears",
            "daemons",
            "engine",
            "halt",
            "hand_back_after_seconds",
            "has_billing",
            "holds",
            "jobs",
            "last_audit",
            "last_run",
            "last_success_at",
            "observed_at",
            "ok",
            "panel",
            "prepaid",
            "problems",
            "schema",
            "uncharged",
            "version"
        ]
    );
    assert_eq!((&well["ok"], &well["holds"]), (&json!(true), &json!([])));
    let run = &well["last_run"];
    assert_eq!((&run["status"], &run["cause"]), (&json!("done"), &json!("schedule")));
    assert_eq!(
        run["totals"],
        json!({
            "charged": 2, "charges": 2, "held": 0, "hours": 6,
            "currencies": { "USD": { "charges": 2, "hours": 6, "amount": "0.06" } },
        })
    );
    let daemons = well["daemons"].as_array().expect("a list");
    assert_eq!(daemons.len(), 1);
    assert_eq!((&daemons[0]["liveness"], &daemons[0]["billing_role"]), (&json!("alive"), &json!("standby")));
    assert_eq!(daemons[0]["version"], well["version"]);
    let jobs = well["jobs"].as_array().expect("a list");
    let names: Vec<_> = jobs.iter().map(|job| job["job"].as_str().expect("text")).collect();
    assert_eq!(names, ["billing", "daily", "heartbeat"]);
    assert_eq!(jobs[0]["last_run"]["id"], run["id"]);
    assert!(jobs.iter().all(|job| job["late_seconds"].is_null()), "{well}");

    let output = program.clone().env("COLUMNS", "80").run("status").await.expect_code(0);
    assert!(output.err.is_empty() && output.out[0] == "billing       healthy", "{}", output.text());
    assert!(
        output.out.iter().all(|line| line.chars().count() <= 80),
        "it fits the terminal: {}",
        output.text()
    );
    let contains =
        |output: &Ended, text: &str| assert!(output.text().contains(text), "no `{text}`: {}", output.text());
    contains(&output, "charged 0.06 USD for 6 hours of 2 instances");
    contains(&output, "(standby)");

    running.terminated().await.expect_code(0);
    let after = status(&program, 1).await;
    assert_eq!(problems(&after), ["no_daemon"], "{after}");
    assert_eq!(after["daemons"][0]["liveness"], "stopped");
    assert_eq!(after["last_run"]["totals"]["charged"], 2, "the last run is not forgotten");
    assert!(!after["last_success_at"].is_null(), "{after}");

    // The panel may bill since the clean stop; that is no problem until the next hour is due.
    let again = program.start("run");
    eventually("billing is healthy again", async || {
        (program.run("status").await.code == Some(0)).then_some(())
    })
    .await;
    again.terminated().await.expect_code(0);
}

/// Scheduled times that passed without a run are newer rows.
async fn last_run_excludes_missed_runs(db: &Db) {
    let program = daemon(db, &[BILLING]);
    seed(db, 2).await;
    program.run("bill").await.expect_code(0);
    let ran = program.run("status --json").await;
    let ran = json(&ran)["last_run"].clone();
    assert_eq!(ran["totals"]["charged"], 2);
    db.execute(
        "CREATE TABLE newer AS SELECT * FROM scheduler_runs;
         UPDATE newer SET id = '0199f2a1-0000-7000-8000-000000000001', status = 'rescheduled', cause = 'schedule',
                          items = 0, started_at = finished_at, details = NULL;
         INSERT INTO scheduler_runs SELECT * FROM newer;
         DROP TABLE newer",
    )
    .await;
    let shown = json(&program.run("status --json").await);
    assert_eq!(shown["last_run"], ran);
    assert_eq!(shown["jobs"][0]["last_run"]["status"], "rescheduled");
    assert!(!problems(&shown).contains(&"billing_failed"), "{shown}");
}

async fn status_groups_holds_by_reason(db: &Db) {
    held(db).await;
    let program = daemon(db, &[BILLING, HEARTBEAT]);
    program.run("bill").await.expect_code(0);
    let shown = status(&program, 1).await;
    assert_eq!(problems(&shown), ["no_daemon", "held"], "{shown}");
    let message = shown["problems"][1]["message"].as_str().expect("text");
    assert_eq!(message, "1 instance is held for `no_price`: set the plan's price, to 0 if it is free");
    assert_eq!(
        shown["arrears"],
        json!({ "instances": 1, "hours": 2, "amounts": { "USD": "0.02" }, "unpriced": 0 })
    );
    let unpriced = &shown["holds"][1];
    assert_eq!((&unpriced["amounts"], &unpriced["unpriced"]), (&json!({}), &json!(1)), "{unpriced}");
    let held: Vec<_> =
        shown["holds"].as_array().expect("a list").iter().map(|held| &held["reason"]).collect();
    assert_eq!(held, ["insufficient_balance", "no_price"]);
    let output = program.run("status").await.expect_code(1);
    assert!(output.text().contains("insufficient_balance  2 hours, 0.02 USD, since "), "{}", output.text());
    assert!(
        output.text().contains("no_price              2 hours, an unknown amount, since "),
        "{}",
        output.text()
    );
}

/// A daemon that was killed, and a job that no daemon runs since.
async fn status_reports_dead_daemon_and_late_jobs(db: &Db) {
    let (ago, soon) = match db.backend() {
        DbBackend::Sqlite => {
            ("(unixepoch('now') - 200) * 1000000", "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', '-3 minutes')")
        }
        _ => ("now() - interval '200 seconds'", "now() - interval '3 minutes'"),
    };
    // Each of them was waited for; but each node runs `own` now, and `gone` is no longer configured.
    let waits = |job| {
        format!(
            "INSERT INTO scheduler_jobs (job, fencing_token, cursor_at, schedule, next_at, late_at, stuck_at)
             VALUES ('{job}', 3, {ago}, 'every 1s', {ago}, {ago}, {ago});"
        )
    };
    db.execute(&["tick", "own", "gone"].map(waits).concat()).await;
    db.execute(&format!(
        "INSERT INTO billing_daemon_status (daemon_instance_id, status, heartbeat_at, metadata, created_at, updated_at)
         VALUES ('killed', 'running', {soon}, '{{\"hostname\": \"h\", \"billingIntervalMinutes\": 60}}', {soon}, {soon})"
    ))
    .await;
    let (tick, own) = (job("tick", "test.tick", "1s", ""), job("own", "test.tick", "1s", "scope = 'node'"));
    let program = daemon(db, &[SHORT_LEASE, BILLING, &tick, &own]);
    let shown = status(&program, 1).await;
    assert_eq!(problems(&shown), ["no_daemon", "daemon_dead", "billing_silent", "job_late"], "{shown}");
    let message = shown["problems"][3]["message"].as_str().expect("text");
    assert!(message.contains("`tick`") && message.contains("no daemon runs it"), "{message}");
    assert_eq!(
        (&shown["daemons"][0]["liveness"], &shown["daemons"][0]["billing_role"]),
        (&json!("dead"), &json!("none"))
    );
    let late = shown["jobs"].as_array().expect("a list").iter().find(|job| job["job"] == "tick");
    let late = late.expect("it is known")["late_seconds"].as_u64().expect("a number");
    assert!((199..260).contains(&late), "{late}");
    // A run that does not end is late as well.
    let later = match db.backend() {
        DbBackend::Sqlite => "(unixepoch('now') + 60) * 1000000",
        _ => "now() + interval '1 minute'",
    };
    db.execute(&format!("UPDATE scheduler_jobs SET holder = 'killed', expires_at = {later}")).await;
    let shown = status(&program, 1).await;
    let message = shown["problems"][3]["message"].as_str().expect("text");
    assert!(message.contains("its run on killed does not end"), "{message}");
    db.execute(&format!("UPDATE scheduler_jobs SET stuck_at = {later}")).await;
    let shown = status(&program, 1).await;
    assert_eq!(problems(&shown), ["no_daemon", "daemon_dead", "billing_silent"], "{shown}");
}

/// A later failed audit has no result, and neither does a job of another kind.
async fn status_shows_last_finished_audit(db: &Db) {
    let ago = |minutes: u32| match db.backend() {
        DbBackend::Sqlite => format!("(unixepoch('now') - {minutes} * 60) * 1000000"),
        _ => format!("now() - {minutes} * interval '1 minute'"),
    };
    for (row, (job, status, minutes, details)) in [
        ("books", "done", 50, r#"'{"checked": 9, "violations": 7}'"#),
        ("again", "done", 40, r#"'{"checked": 9, "violations": 2}'"#),
        ("books", "retrying", 30, "NULL"),
        ("daily", "done", 20, r#"'{"violations": 5}'"#),
    ]
    .into_iter()
    .enumerate()
    {
        let at = ago(minutes);
        db.execute(&format!(
            "INSERT INTO scheduler_runs (id, job, scheduled_at, status, fencing_token, daemon_id, started_at, finished_at, details)
             VALUES ('00000000-0000-4000-8000-00000000000{row}', '{job}', {at}, '{status}', 1, 'x', {at}, {at}, {details})"
        ))
        .await;
    }
    let audit = |name: &str| job(name, "audit", "1d", "");
    let shown = status(&daemon(db, &[&audit("books"), &audit("again"), DAILY]), 1).await;
    assert_eq!(
        (&shown["last_audit"]["job"], &shown["last_audit"]["details"]["violations"]),
        (&json!("again"), &json!(2))
    );
    let shown = status(&daemon(db, &[&audit("books"), DAILY]), 1).await;
    assert_eq!(shown["last_audit"]["details"]["violations"], 7, "{shown}");
    assert_eq!(status(&daemon(db, &[DAILY]), 1).await["last_audit"], Value::Null);
}

async fn status_needs_only_read_access(db: &Db) {
    seed(db, 1).await;
    let tokens = "SELECT count(*) FROM scheduler_fencing";
    let before = fetch(db, tokens).await;
    let reader = db.url_for(Login::Reading);
    let jobs = program().env("DATABASE_URL", &reader).file("jobs.toml", BILLING);
    let shown = status(&jobs, 1).await;
    assert_eq!(shown["panel"]["generation"], format!("{:?}", db.panel), "{shown}");
    assert_eq!(shown["panel"]["present"], true);
    let unguarded = problems(&shown).contains(&"panel_guard");
    assert_eq!(unguarded, db.panel != billing_test_support::Panel::G1, "{shown}");
    let off = jobs.clone().file("jobs.toml", &format!("[daemon]\npanel-billing = 'off'\n{BILLING}"));
    assert!(!problems(&status(&off, 1).await).contains(&"panel_guard"));
    jobs.run("audit").await.expect_code(0);
    assert_eq!(fetch(db, tokens).await, before);
    db.execute("ALTER TABLE billing_charges DROP CONSTRAINT billing_charges_pkey").await;
    let ended = jobs.run("audit").await.expect_code(1);
    assert!(ended.out[0].starts_with("unique_key: "), "{}", ended.text());
}

/// A row of the panel's table of daemons that would keep a panel from billing.
const HEARTBEATS: &str = "SELECT count(*) FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL";

async fn daemons_without_heartbeat_are_known(db: &Db) {
    for (jobs, role, has_billing) in [(&[DAILY][..], "none", false), (&[BILLING, DAILY], "standby", true)] {
        let program = daemon(db, jobs);
        let running = program.start("run");
        let well = eventually("the daemon is known and no problem", async || {
            let shown = json(&program.run("status --json").await);
            let is_idle = !has_billing || !shown["last_success_at"].is_null();
            let daemon = &shown["daemons"][0];
            (is_idle && daemon["liveness"] == "alive" && daemon["billing_role"] != "active")
                .then_some(shown.clone())
        })
        .await;
        assert_eq!(problems(&well), [""; 0], "{well}");
        assert_eq!(
            (&well["has_billing"], &well["daemons"][0]["billing_role"]),
            (&json!(has_billing), &json!(role))
        );
        assert_eq!(fetch(db, HEARTBEATS).await, "0", "the panel does not take it for a biller");
        let doctor = json(&program.run("doctor --json").await.expect_code(0));
        let found = doctor["findings"].as_array().expect("a list");
        let daemons = found.iter().find(|finding| finding["check"] == "daemons").expect("it is looked at");
        assert_eq!(daemons["verdict"], "ok", "{daemons}");
        running.terminated().await.expect_code(0);
        assert_eq!(problems(&status(&program, 1).await), ["no_daemon"]);
        db.execute("DELETE FROM billing_daemon_status").await;
    }
}

/// The clean stop of a daemon without billing hands nothing back to the panel while another one bills.
async fn stop_without_billing_leaves_heartbeat(db: &Db) {
    seed(db, 1).await;
    let biller = daemon(db, &[BILLING, HEARTBEAT]);
    let billing = biller.start("run");
    billing.wait_for_line("job `billing` done").await;
    let other = daemon(db, &[DAILY]);
    let running = other.start("run");
    eventually("both are known", async || {
        (fetch(db, "SELECT count(*) FROM billing_daemon_status").await == "2").then_some(())
    })
    .await;
    // As if the one that bills were suspended.
    let old = match db.backend() {
        DbBackend::Sqlite => "'2020-01-01T00:00:00.000+00:00'",
        _ => "'2020-01-01Z'",
    };
    billing.signal(Signal::STOP);
    db.execute(&format!(
        "UPDATE billing_daemon_status SET updated_at = {old} WHERE heartbeat_at IS NOT NULL"
    ))
    .await;
    running.terminated().await.expect_code(0);
    assert_eq!(
        fetch(db, "SELECT count(*) FROM scheduler_fencing WHERE last_success_at IS NOT NULL").await,
        "1"
    );
    billing.signal(Signal::CONT);
    billing.terminated().await.expect_code(0);
    assert_eq!(
        fetch(db, "SELECT count(*) FROM scheduler_fencing WHERE last_success_at IS NOT NULL").await,
        "0"
    );
}

async fn paused_billing_is_reported_and_not_run(db: &Db) {
    let organizations = seed(db, 1).await;
    let program = daemon(db, &[BILLING, HEARTBEAT]).env("USER", "ada");
    program.run("jobs pause billing --reason prices").await.expect_code(0);
    let running = program.start("run");
    running.wait_for_line(" runs ").await;
    eventually("the daemon is known", async || {
        (!problems(&status(&program, 1).await).contains(&"no_daemon")).then_some(())
    })
    .await;
    let shown = status(&program, 1).await;
    assert_eq!(problems(&shown), ["billing_paused"], "{shown}");
    let output = program.run("status").await.expect_code(1);
    assert_eq!(output.out[0], "billing       paused", "{}", output.text());
    assert!(
        output.text().contains("billing is paused by ada@") && output.text().contains(": prices"),
        "{}",
        output.text()
    );
    program.run("bill --dry-run").await.expect_code(0);
    for command in ["bill", "jobs trigger billing"] {
        let refused = program.run(command).await.expect_code(64);
        assert!(refused.text().contains("--force"), "{command}: {}", refused.text());
    }
    assert_eq!(fetch(db, "SELECT count(*) FROM billing_charges").await, "0");
    program.run("bill --force").await.expect_code(0);
    check_all_charged_once(db, &organizations).await;
    running.terminated().await.expect_code(0);
}

on_every_engine!(
    last_run_excludes_missed_runs,
    daemons_without_heartbeat_are_known,
    stop_without_billing_leaves_heartbeat,
    paused_billing_is_reported_and_not_run,
    status_is_healthy_only_while_billing,
    status_groups_holds_by_reason,
    status_reports_dead_daemon_and_late_jobs,
    status_shows_last_finished_audit,
);
on_variants!(status_needs_only_read_access: g1_role, g2_role, g3_role);

#[tokio::test]
async fn unusable_database_has_separate_exit_code() {
    let gone = program().env("DATABASE_URL", "postgres://none@127.0.0.1:1/none");
    gone.run("status").await.expect_code(69);
    // No reading command creates a file; one without our tables does not fit.
    let program = program();
    let file = program.folder().join("empty.db");
    let program = program.env("DATABASE_URL", &format!("sqlite://{}?mode=rwc", file.display()));
    for command in ["status", "doctor", "audit", "jobs list", "runs list", "holds list", "bill --dry-run"] {
        let code = if command == "doctor" { 1 } else { 69 };
        program.run(command).await.expect_code(code);
        assert!(!file.exists(), "`{command}` created a database");
    }
    std::fs::write(&file, "").expect("a folder of ours");
    program.run("status").await.expect_code(78);
}
