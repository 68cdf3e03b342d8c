//! `jobs list` and `jobs show`.

use billing_scheduler::RunFilter;
use serde_json::Value;

use super::JobSession;
use crate::{
    commands::runs::{self, run_in_json},
    exit::Failure,
    format::{count, instant},
    output::{self, Left, Report, json as say_json, line as say},
    status::jobs::JobOverview,
};

/// How many of its last runs a job is shown with.
const RUNS_SHOWN: u32 = 5;

pub(super) async fn list(desk: &JobSession, json: bool) -> Result<(), Failure> {
    let (jobs, now, known) = (desk.jobs().await?, desk.clock.now(), desk.is_complete);
    if json {
        say_json(&Value::Array(jobs.iter().map(|job| job.in_json(known, now)).collect()));
        return Ok(());
    }
    let rows: Vec<_> = jobs
        .iter()
        .map(|job| {
            [
                job.name.clone(),
                job.word(known, now).to_owned(),
                job.schedule(),
                job.next_at(now).map(instant).unwrap_or_default(),
                job.last.as_ref().map(|last| instant(last.run.started_at)).unwrap_or_default(),
                about(job),
            ]
        })
        .collect();
    let heads = [Left("JOB"), Left("STATE"), Left("SCHEDULE"), Left("NEXT"), Left("LAST"), Left("ABOUT")];
    output::table(heads, &rows);
    Ok(())
}

/// What there is to say of a job besides.
fn about(job: &JobOverview) -> String {
    if let Some(pause) = &job.paused {
        return pause.to_string();
    }
    let Some(last) = &job.last else { return "never ran".to_owned() };
    let error = last.run.error.as_deref().or(last.run.reason.as_deref());
    match error {
        Some(error) => format!("{}: {error}", last.run.status.as_str()),
        None => last.run.status.as_str().to_owned(),
    }
}

pub(super) async fn show(desk: &JobSession, name: &str, json: bool) -> Result<(), Failure> {
    let (job, now, known) = (desk.job(name).await?, desk.clock.now(), desk.is_complete);
    let last = RunFilter { job: Some(name.to_owned()), limit: RUNS_SHOWN, ..RunFilter::default() };
    let last = desk.runs(&last).await?;
    if json {
        let mut value = job.in_json(known, now);
        value["runs"] = last.iter().map(run_in_json).collect();
        say_json(&value);
        return Ok(());
    }
    let mut report = Report::default();
    report.add("job", name);
    report.add("state", job.word(known, now));
    report.add_some("kind", job.spec.as_ref().map(|spec| &spec.kind));
    report.add("schedule", job.schedule());
    report.add_some("next", job.next_at(now).map(instant));
    if let Some(row) = &job.row {
        report.add("finished", format!("up to {}", instant(row.state.cursor)));
        report.add_some(
            "retrying",
            row.state.retrying.map(|retrying| {
                let failed = count(retrying.failed_attempts.into(), "failed attempt");
                let (at, not_before) = (instant(retrying.scheduled_at), instant(retrying.not_before));
                format!("{at} after {failed}, not before {not_before}")
            }),
        );
        report.add_some(
            "lease",
            row.lease.as_ref().map(|lease| {
                let until = instant(lease.expires_at);
                format!("{}, fencing token {}, until {until}", lease.name, lease.fencing_token)
            }),
        );
    }
    report.add_some("late", job.late(now).map(|late| late.to_string()));
    report.add_some(
        "paused",
        job.paused.as_ref().map(|pause| format!("{pause}, since {}", instant(pause.since))),
    );
    output::report(&report);
    if !last.is_empty() {
        say("");
        runs::print_table(&last);
    }
    Ok(())
}
