//! `jobs list` and `jobs show`.

use billing_scheduler::RunFilter;
use serde_json::Value;

use super::{JobSession, shown};
use crate::output::table::table;
use crate::{
    commands::{
        runs::{self, run_in_json},
        width,
    },
    exit::Failure,
    output::{json as say_json, layout as say_lines, line as say},
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
                job.next_at(now).map(shown).unwrap_or_default(),
                job.last.as_ref().map(|last| shown(last.run.started_at)).unwrap_or_default(),
                about(job),
            ]
        })
        .collect();
    let heads = ["JOB", "STATE", "SCHEDULE", "NEXT (UTC)", "LAST (UTC)", "ABOUT"];
    say_lines(table(heads, &rows, width()).trim_end());
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
    let mut lines = vec![("job", name.to_owned()), ("state", job.word(known, now).to_owned())];
    if let Some(spec) = &job.spec {
        lines.push(("kind", spec.kind.clone()));
    }
    lines.push(("schedule", job.schedule()));
    lines.extend(job.next_at(now).map(|at| ("next", format!("{} UTC", shown(at)))));
    if let Some(row) = &job.row {
        lines.push(("finished", format!("with everything until {} UTC", shown(row.state.cursor))));
        if let Some(retrying) = row.state.retrying {
            let (at, not_before) = (shown(retrying.scheduled_at), shown(retrying.not_before));
            let failed = retrying.failed_attempts;
            lines.push(("retrying", format!("{at} UTC failed {failed} times, again from {not_before} UTC")));
        }
        if let Some(held) = &row.lease {
            lines.push(("held", format!("by {} under fencing token {}", held.name, held.fencing_token)));
        }
    }
    lines.extend(job.late(now).map(|late| ("late", late.to_string())));
    if let Some(pause) = &job.paused {
        lines.push(("paused", format!("{pause}, since {} UTC", shown(pause.since))));
    }
    for (key, value) in lines {
        say(format!("{key:9} {value}"));
    }
    if !last.is_empty() {
        say_lines(&format!("\n{}", runs::in_table(&last, false, width()).trim_end()));
    }
    Ok(())
}
