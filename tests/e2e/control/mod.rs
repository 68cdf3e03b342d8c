//! Control requests through the database while a daemon runs, and reloads of its configuration.

mod audit_log;
mod history;
mod reload;
mod requests;

use billing_test_support::{Db, Program, Running, eventually};
use serde_json::Value;

use crate::{
    commands::json,
    daemon::{daemon, now},
};

/// Is due once a year, and waits until it is cancelled.
pub(super) const WAITS_FOR_CANCEL: &str = r#"
[[job]]
name = "sleeper"
kind = "test.waits-for-cancel"
schedule = { every = "365d" }
"#;

pub(super) const BROKEN: &str = r#"
[[job]]
name = "broken"
kind = "test.broken"
schedule = { every = "365d" }
"#;

/// These jobs on this database, controlled by ada.
pub(super) fn with(db: &Db, jobs: &[&str]) -> Program {
    daemon(db, jobs).env("USER", "ada")
}

/// The JSON output of a command.
pub(super) async fn run_json(program: &Program, arguments: &str) -> Value {
    json(&program.run(&format!("{arguments} --json")).await.expect_code(0))
}

/// The history of a job, newest first: status, cause and number of scheduled times.
pub(super) async fn history(program: &Program, job: &str) -> Vec<String> {
    let runs = run_json(program, &format!("runs list --job {job} --limit 0")).await;
    let short =
        |run: &Value| format!("{} {} {}", text(&run["status"]), text(&run["cause"]), run["scheduled_count"]);
    runs.as_array().expect("a list").iter().map(short).collect()
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// A daemon that has begun with its jobs.
pub(super) async fn started(program: &Program) -> Running {
    let running = program.start("run");
    running.wait_for_line(" runs ").await;
    running
}

/// Waits until a job has a row with this beginning.
pub(super) async fn until_history_has(program: &Program, job: &str, row: &str) {
    eventually(&format!("`{job}` has {row}"), async || {
        history(program, job).await.iter().any(|found| found.starts_with(row)).then_some(())
    })
    .await;
}

/// Waits until a job has this many more rows.
pub(super) async fn until_history_grew(program: &Program, job: &str, rows: usize) {
    let before = history(program, job).await.len();
    eventually(&format!("`{job}` has {rows} rows more"), async || {
        (history(program, job).await.len() >= before + rows).then_some(())
    })
    .await;
}

/// Waits until the next second of the database's clock begins.
pub(super) async fn until_a_second_begins(db: &Db) {
    let before = now(db).await;
    eventually("a second begins", async || (now(db).await > before).then_some(())).await;
}
