//! `runs`: what ran, and what did not.

use billing_scheduler::{RunFilter, RunRow, RunStatus, duration::format_rounded};
use clap::Subcommand;
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

use super::{
    args::{JsonArgs, Since, parse_since},
    jobs::{JobSession, instant},
    session::Session,
};
use crate::{
    exit::{Exit, Failure},
    format::{self, count},
    output::{self, Left, Report, Right, json as say_json},
};

#[derive(Debug, Subcommand)]
pub(crate) enum RunsCommand {
    /// List runs, and scheduled times without a run, newest first
    #[command(after_help = "Example:\n  billing-daemon runs list --job billing --since 2d")]
    List {
        /// Only runs of this job
        #[arg(long, value_name = "NAME")]
        job: Option<String>,
        /// Only runs with this status: done, retrying, dead, interrupted, skipped, missed, paused or rescheduled
        #[arg(long, value_name = "STATUS", value_parser = parse_status)]
        status: Option<RunStatus>,
        /// Only runs that started since this time, or within this duration
        #[arg(long, value_name = "TIME|DURATION", value_parser = parse_since)]
        since: Option<Since>,
        /// Maximum number of rows; 0 for all
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show everything about one run
    #[command(after_help = "Example:\n  billing-daemon runs show 0199a6b2-7c1e-7d30-9c1f-2b7f0d8e4a55")]
    Show {
        /// The run's id
        id: Uuid,
        #[command(flatten)]
        format: JsonArgs,
    },
}

fn parse_status(text: &str) -> Result<RunStatus, String> {
    let words = || RunStatus::ALL.map(RunStatus::as_str).join(", ");
    RunStatus::parse(text).ok_or_else(|| format!("use one of {}", words()))
}

pub(super) async fn execute(session: &Session<'_>, action: &RunsCommand) -> Result<(), Failure> {
    let desk = JobSession::open(session, None).await?;
    match action {
        RunsCommand::List { job, status, since, limit, json } => {
            let filter = RunFilter {
                job: job.clone(),
                status: *status,
                since: since.as_ref().map(|since| since.before(desk.clock.now())),
                limit: *limit,
                ..RunFilter::default()
            };
            let rows = desk.runs(&filter).await?;
            if *json {
                say_json(&rows.iter().map(run_in_json).collect::<Value>());
            } else {
                print_table(&rows);
            }
        }
        RunsCommand::Show { id, format } => {
            let filter = RunFilter { id: Some(*id), ..RunFilter::default() };
            let Some(row) = desk.runs(&filter).await?.pop() else {
                return Err(Failure::new(
                    Exit::Usage,
                    format!("there is no run {id}: `runs list` shows some"),
                ));
            };
            if format.json { say_json(&run_in_json(&row)) } else { output::report(&report(&row)) }
        }
    }
    Ok(())
}

/// Prints runs, newest first.
pub(super) fn print_table(rows: &[RunRow]) {
    let cells = |row: &RunRow| {
        let run = &row.run;
        let status = if run.attempt > 1 {
            format!("{} #{}", run.status.as_str(), run.attempt)
        } else {
            run.status.as_str().to_owned()
        };
        [
            run.id.to_string(),
            run.job.clone(),
            format::instant(run.scheduled_at),
            status,
            run.cause.as_str().to_owned(),
            if run.status.has_run() { took(row) } else { String::new() },
            run.items.to_string(),
            about(row),
        ]
    };
    let heads = [
        Left("ID"),
        Left("JOB"),
        Left("SCHEDULED"),
        Left("STATUS"),
        Left("CAUSE"),
        Right("TOOK"),
        Right("ITEMS"),
        Left("ABOUT"),
    ];
    output::table(heads, &rows.iter().map(cells).collect::<Vec<_>>());
}

fn took(row: &RunRow) -> String {
    format_rounded(row.run.duration())
}

/// What failed, or why it ended so, and which scheduled times it stands for.
fn about(row: &RunRow) -> String {
    let range = row.run.range.map(|range| {
        format!("{} since {}", count(range.count.into(), "scheduled time"), format::instant(range.from))
    });
    let parts = [row.run.error.clone(), row.run.reason.clone(), range];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// A run in one line: `billing of 2026-11-22T15:00:00Z: done, 12 items in 300ms`.
pub(super) fn sentence(row: &RunRow) -> String {
    format!("{} of {}: {}", row.run.job, format::instant(row.run.scheduled_at), outcome(row))
}

/// How a run ended: `done, 12 items in 300ms`; for scheduled times without a run, why.
pub(super) fn outcome(row: &RunRow) -> String {
    let run = &row.run;
    let about = about(row);
    let about = if about.is_empty() { about } else { format!("; {about}") };
    let figures = if run.status.has_run() {
        format!(", {} in {}", count(run.items, "item"), took(row))
    } else {
        String::new()
    };
    format!("{}{figures}{about}", run.status.as_str())
}

fn report(row: &RunRow) -> Report {
    let run = &row.run;
    let mut report = Report::default();
    report.add("run", run.id.to_string());
    report.add("job", &run.job);
    report.add("scheduled", format::instant(run.scheduled_at));
    report.add_some(
        "range",
        run.range.map(|range| {
            format!("{} since {}", count(range.count.into(), "scheduled time"), format::instant(range.from))
        }),
    );
    report.add("status", run.status.as_str());
    report.add("cause", run.cause.as_str());
    report.add_some("attempt", (run.attempt > 0).then(|| run.attempt.to_string()));
    report.add("daemon", &row.daemon_id);
    report.add_some("token", (run.fencing_token.0 > 0).then(|| run.fencing_token.to_string()));
    let lateness = format_rounded(Duration::from_millis(run.lateness_ms().unsigned_abs()));
    report.add("started", format!("{}, {lateness} late", format::instant(run.started_at)));
    report.add_some("took", run.status.has_run().then(|| took(row)));
    report.add("items", run.items.to_string());
    report.add_some("reason", run.reason.as_ref());
    report.add_some("error", run.error.as_ref());
    report.add_some("details", (!run.details.is_null()).then(|| run.details.to_string()));
    report
}

/// A run as programs read it.
pub(super) fn run_in_json(row: &RunRow) -> Value {
    let run = &row.run;
    json!({
        "id": run.id,
        "job": run.job,
        "scheduled_at": instant(run.scheduled_at),
        "scheduled_from": run.range.map(|stretch| instant(stretch.from)),
        "scheduled_count": run.range.map_or(1, |stretch| stretch.count),
        "status": run.status.as_str(),
        "cause": run.cause.as_str(),
        "attempt": run.attempt,
        "fencing_token": run.fencing_token.0,
        "daemon_id": row.daemon_id,
        "started_at": instant(run.started_at),
        "finished_at": instant(run.finished_at),
        "lateness_ms": run.lateness_ms(),
        "duration_ms": u64::try_from(run.duration().as_millis()).unwrap_or(u64::MAX),
        "items": run.items,
        "request_id": run.request_id,
        "reason": run.reason,
        "error": run.error,
        "details": run.details,
    })
}
