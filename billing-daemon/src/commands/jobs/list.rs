//! `jobs list` and `jobs show`.

use billing_scheduler::RunFilter;
use serde::Serialize;

use super::session::JobSession;
use crate::{
    commands::runs::print_table,
    exit::Failure,
    format::{count, instant},
    output::{self, Left, Report, json as say_json, line as say},
    status::{JobView, RunView},
};

/// The number of last runs that a job is shown with.
const RUNS_SHOWN: u32 = 5;

pub(super) async fn list(session: &JobSession, json: bool) -> Result<(), Failure> {
    let jobs = session.jobs().await?;
    if json {
        say_json(&jobs);
        return Ok(());
    }
    let cells = |job: &JobView| {
        [
            job.job.clone(),
            job.state.to_string(),
            job.schedule.clone().unwrap_or_default(),
            job.due_at.map(instant).unwrap_or_default(),
            job.last_run.as_ref().map(|last| instant(last.started_at)).unwrap_or_default(),
            about(job),
        ]
    };
    let heads = [Left("JOB"), Left("STATE"), Left("SCHEDULE"), Left("NEXT"), Left("LAST"), Left("ABOUT")];
    output::table(heads, &jobs.iter().map(cells).collect::<Vec<_>>());
    Ok(())
}

fn about(job: &JobView) -> String {
    if let Some(pause) = &job.paused {
        return pause.to_string();
    }
    let Some(last) = &job.last_run else { return "never ran".to_owned() };
    match last.error.as_ref().or(last.reason.as_ref()) {
        Some(error) => format!("{}: {error}", last.status.as_str()),
        None => last.status.as_str().to_owned(),
    }
}

/// A job with its last runs, newest first.
#[derive(Serialize)]
struct JobWithRuns {
    #[serde(flatten)]
    job: JobView,
    runs: Vec<RunView>,
}

pub(super) async fn show(session: &JobSession, name: &str, json: bool) -> Result<(), Failure> {
    let job = session.job(name).await?;
    let last = RunFilter { job: Some(name.to_owned()), limit: RUNS_SHOWN, ..RunFilter::default() };
    let runs = session.runs(&last).await?;
    if json {
        say_json(&JobWithRuns { job, runs });
        return Ok(());
    }
    output::report(&report(&job));
    if !runs.is_empty() {
        say("");
        print_table(&runs);
    }
    Ok(())
}

fn report(job: &JobView) -> Report {
    let mut report = Report::default();
    report.add("job", &job.job);
    report.add("state", job.state.to_string());
    report.add_some("kind", job.kind.as_ref());
    report.add_some("schedule", job.schedule.as_ref());
    report.add_some("next", job.due_at.map(instant));
    report.add_some("finished", job.cursor.map(|cursor| format!("up to {}", instant(cursor))));
    let retrying = job.retrying.map(|retrying| {
        let failed = count(retrying.failed_attempts.into(), "failed attempt");
        let (at, not_before) = (instant(retrying.scheduled_at), instant(retrying.not_before));
        format!("{at} after {failed}, not before {not_before}")
    });
    report.add_some("retrying", retrying);
    let lease = job.lease.as_ref().map(|lease| {
        let until = instant(lease.expires_at);
        format!("{}, fencing token {}, until {until}", lease.holder, lease.fencing_token)
    });
    report.add_some("lease", lease);
    report.add_some("late", job.lateness());
    report.add_some("ahead", job.ahead().map(|ahead| ahead.to_string()));
    let pause = job.paused.as_ref().map(|pause| format!("{pause}, since {}", instant(pause.since)));
    report.add_some("paused", pause);
    report
}
