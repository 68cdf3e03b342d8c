//! `runs`: the history of runs, and of scheduled times without a run.

use std::{iter, time::Duration};

use billing_jobs::currency::Currency;
use billing_scheduler::{Clock, RunFilter, RunStatus, SystemClock, duration::format_rounded};
use billing_store::read_runs;
use clap::Subcommand;
use serde_json::Value;
use uuid::Uuid;

use super::{
    args::{JsonArgs, Since, parse_since},
    session::Session,
};
use crate::{
    exit::{Exit, Failure},
    format::{count, instant},
    output::{self, Left, Report, Right, json as say_json},
    status::RunView,
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
        /// Maximum number of rows; 0 for all [default: 50]
        #[arg(long, value_name = "N", default_value_t = 50, hide_default_value = true)]
        limit: u32,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one run with all its details
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
    let filter = match action {
        RunsCommand::List { job, status, since, limit, .. } => RunFilter {
            job: job.clone(),
            status: *status,
            since: since.as_ref().map(|since| since.before(SystemClock.now())),
            limit: *limit,
            ..RunFilter::default()
        },
        RunsCommand::Show { id, .. } => RunFilter { id: Some(*id), ..RunFilter::default() },
    };
    let opened = session.panel_for_reading().await?;
    let rows = read_runs(&opened.db, &filter).await;
    let rows = rows.map_err(|error| Failure::database("read the history", &error))?;
    let runs: Vec<RunView> = rows.into_iter().map(RunView::from).collect();
    match action {
        RunsCommand::List { json: true, .. } => say_json(&runs),
        RunsCommand::List { .. } => print_table(&runs),
        RunsCommand::Show { id, format } => match runs.first() {
            None => {
                let message = format!("there is no run {id}: list the runs with `runs list`");
                return Err(Failure::new(Exit::Usage, message));
            }
            Some(run) if format.json => say_json(run),
            Some(run) => output::report(&report(run)),
        },
    }
    Ok(())
}

/// Prints runs as a table.
pub(super) fn print_table(runs: &[RunView]) {
    let cells = |run: &RunView| {
        let status = run.status.as_str();
        [
            run.id.to_string(),
            run.job.clone(),
            instant(run.scheduled_at),
            if run.attempt > 1 { format!("{status} #{}", run.attempt) } else { status.to_owned() },
            run.cause.as_str().to_owned(),
            if run.status.has_run() { took(run) } else { String::new() },
            run.items.to_string(),
            about(run),
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
    output::table(heads, &runs.iter().map(cells).collect::<Vec<_>>());
}

fn took(run: &RunView) -> String {
    format_rounded(Duration::from_millis(run.duration_ms))
}

/// The scheduled times of a range: `3 scheduled times since 2026-11-22T15:00:00Z`.
fn range(run: &RunView) -> Option<String> {
    let times = count(run.scheduled_count.into(), "scheduled time");
    run.scheduled_from.map(|from| format!("{times} since {}", instant(from)))
}

/// Why a run failed or did not run, and which scheduled times the record covers.
fn about(run: &RunView) -> String {
    let parts = [run.error.clone(), run.reason.clone(), range(run)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// A run in one line: `billing of 2026-11-22T15:00:00Z: done, 12 items in 300ms`.
pub(super) fn sentence(run: &RunView) -> String {
    format!("{} of {}: {}", run.job, instant(run.scheduled_at), outcome(run))
}

/// How a run ended: `done, 12 items in 300ms`; for scheduled times without a run, why.
pub(super) fn outcome(run: &RunView) -> String {
    let about = about(run);
    let about = if about.is_empty() { about } else { format!("; {about}") };
    let figures = if run.status.has_run() {
        format!(", {} in {}", count(run.items, "item"), took(run))
    } else {
        String::new()
    };
    format!("{}{figures}{about}", run.status.as_str())
}

fn report(run: &RunView) -> Report {
    let mut report = Report::default();
    report.add("run", run.id.to_string());
    report.add("job", &run.job);
    report.add("scheduled", instant(run.scheduled_at));
    report.add_some("range", range(run));
    report.add("status", run.status.as_str());
    report.add("cause", run.cause.as_str());
    report.add_some("attempt", (run.attempt > 0).then(|| run.attempt.to_string()));
    report.add("daemon", &run.daemon_id);
    report.add_some("token", (run.fencing_token > 0).then(|| run.fencing_token.to_string()));
    let lateness = format_rounded(Duration::from_millis(run.lateness_ms.unsigned_abs()));
    report.add("started", format!("{}, {lateness} late", instant(run.started_at)));
    report.add_some("took", run.status.has_run().then(|| took(run)));
    report.add("items", run.items.to_string());
    report.add_some("request", run.request_id.map(|id| id.to_string()));
    report.add_some("reason", run.reason.as_ref());
    report.add_some("error", run.error.as_ref());
    report.add_list("details", run.details.iter().flat_map(|details| details_lines(details, None)));
    report
}

/// The details of a run, one per line; an amount below the key of a currency is printed with that currency.
fn details_lines(details: &Value, currency: Option<Currency>) -> Vec<String> {
    match details {
        Value::Object(entries) => {
            let entry = |(key, value): (&String, &Value)| {
                let currency = key.parse().ok().or(currency);
                match value {
                    Value::Object(_) | Value::Array(_) => {
                        let lines =
                            details_lines(value, currency).into_iter().map(|line| format!("  {line}"));
                        iter::once(format!("{key}:")).chain(lines).collect()
                    }
                    _ => vec![format!("{key}: {}", scalar(key, value, currency))],
                }
            };
            entries.iter().flat_map(entry).collect()
        }
        Value::Array(values) => {
            let element = |value: &Value| {
                let lines = details_lines(value, currency).into_iter().enumerate();
                lines
                    .map(|(n, line)| format!("{}{line}", if n == 0 { "- " } else { "  " }))
                    .collect::<Vec<_>>()
            };
            values.iter().flat_map(element).collect()
        }
        _ => vec![scalar("", details, None)],
    }
}

fn scalar(key: &str, value: &Value, currency: Option<Currency>) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match currency.filter(|currency| *currency != Currency::NONE) {
        Some(currency) if matches!(key, "amount" | "limit") => format!("{text} {currency}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::details_lines;

    #[test]
    fn details_are_printed_line_by_line() {
        let details = json!({
            "charged": 4,
            "currencies": { "USD": { "amount": "0.12", "hours": 12 }, "XXX": { "amount": "0.00" } },
            "first_seen_prices": { "count": 2, "listed": [{ "hourly": "0.01", "plan": "one" }, { "plan": "two" }] },
            "note": "a text",
        });
        let expected = [
            "charged: 4",
            "currencies:",
            "  USD:",
            "    amount: 0.12 USD",
            "    hours: 12",
            "  XXX:",
            "    amount: 0.00",
            "first_seen_prices:",
            "  count: 2",
            "  listed:",
            "    - hourly: 0.01",
            "      plan: one",
            "    - plan: two",
            "note: a text",
        ];
        assert_eq!(details_lines(&details, None), expected);
        assert_eq!(details_lines(&json!("a text"), None), ["a text"]);
    }
}
