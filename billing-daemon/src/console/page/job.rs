//! One job: its schedule, its state, how punctual it is, and its history.

use billing_entities::scheduler_requests;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::{
    prelude::*,
    timeline::{Timeline, read_newest_runs},
};
use crate::{
    config::closest,
    status::{JobView, RunView},
};

/// How many scheduled times are shown.
const NEXT: usize = 5;
/// How many open requests are shown.
const REQUESTS: u64 = 50;
/// How many runs the table has; the bars have all of them.
const LISTED: usize = 15;

#[derive(Serialize)]
pub(in crate::console) struct JobPage {
    job: JobView,
    /// The next scheduled times, if the configuration has the job.
    next: Vec<DateTime<Utc>>,
    /// The requests that no run has answered yet, the oldest first.
    requests: Vec<OpenRequest>,
    /// The newest first.
    runs: Vec<RunView>,
    timeline: Timeline,
}

#[derive(Serialize)]
struct OpenRequest {
    kind: String,
    at: DateTime<Utc>,
    by: String,
    reason: Option<String>,
}

/// Returns the job in the path.
pub(in crate::console) fn known(visit: &Visit) -> Result<&JobView, Problem> {
    let name = visit.param("name");
    visit.status.job(name).ok_or_else(|| {
        let nearest = closest(name, visit.status.jobs.iter().map(|job| &*job.job));
        Problem::unknown("job", name, nearest.map(|job| (job, format!("jobs/{job}"))))
    })
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<JobPage, Problem> {
    let job = known(visit)?.clone();
    let runs = read_newest_runs(visit, &job.job).await?;
    let timeline = Timeline::of(visit, &job.job, &runs).await?;
    let expected = visit.console.shared.expected();
    let schedule = expected.jobs.iter().find(|spec| spec.name == job.job).map(|spec| &spec.schedule);
    let after = |at: &DateTime<Utc>| schedule.and_then(|schedule| schedule.next_after(*at).ok().flatten());
    let next = std::iter::successors(after(&visit.status.observed_at), after).take(NEXT).collect();
    let requests = read_requests(visit, &job.job).await?;
    Ok(JobPage { job, next, requests, runs, timeline })
}

async fn read_requests(visit: &Visit, job: &str) -> Result<Vec<OpenRequest>, Problem> {
    let query = scheduler_requests::Entity::find()
        .filter(scheduler_requests::Column::Job.eq(job))
        .order_by_asc(scheduler_requests::Column::RequestedAt)
        .limit(REQUESTS);
    let request = |row: scheduler_requests::Model| OpenRequest {
        kind: row.kind.replace('_', " "),
        at: row.requested_at.0,
        by: row.requested_by,
        reason: row.reason,
    };
    visit.models("read the open requests", query, request).await
}

impl View for JobPage {
    fn title(&self) -> String {
        format!("Job {}", self.job.job)
    }

    fn body(&self, visit: &Visit) -> Markup {
        let job = &self.job;
        let next: Vec<_> = self.next.iter().map(|at| time(*at)).collect();
        let mut shown = vec![
            ("state", super::jobs::state(job)),
            ("kind", text(job.kind.as_deref().unwrap_or("not configured"))),
            ("schedule", text(job.schedule.as_deref().unwrap_or("unknown"))),
            ("next times", html! { @for at in &next { div { (at) } } @if next.is_empty() { "none" } }),
        ];
        if let Some(lease) = &job.lease {
            let holder = format!("{}, token {}", lease.holder, lease.fencing_token);
            shown.push(("runs on", html! { (holder) " until " (time(lease.expires_at)) }));
        }
        if let Some(retry) = &job.retrying {
            let failed = format!("{} failed attempts, again at ", retry.failed_attempts);
            shown.push(("retry", html! { (failed) (time(retry.not_before)) }));
        }
        if let Some(pause) = &job.paused {
            shown.push(("paused", html! { (pause.to_string()) ", since " (time(pause.since)) }));
        }
        html! {
            @if visit.may(Right::Operate) { (actions(visit, job)) }
            (facts(&shown))
            @if !self.requests.is_empty() {
                h2 { "Open requests" }
                (table(["request", "at", "by", "reason"], self.requests.iter().map(OpenRequest::row), ""))
            }
            section aria-label="History" {
                h2 { "Last " (self.runs.len()) " runs" }
                (chart::bars(&self.runs))
                p.hint { (chart::in_words(&self.runs)) }
                h2 { "Planned and actual times" }
                (chart::timeline(&self.timeline))
                (self.timeline.lateness())
                h2 { "Newest runs" }
                (runs(visit, &self.runs[..self.runs.len().min(LISTED)]))
                p { (link(visit, format!("jobs/{}/timeline?runs=500", job.job), "Older runs")) }
            }
        }
    }
}

impl OpenRequest {
    fn row(&self) -> [Markup; 4] {
        [
            badge(Tone::Busy, &self.kind),
            time(self.at),
            text(&self.by),
            text(self.reason.as_deref().unwrap_or_default()),
        ]
    }
}

/// The forms of the actions that are possible now.
fn actions(visit: &Visit, job: &JobView) -> Markup {
    let name = &job.job;
    let simple = |verb: &str, label: &str, hint: &str| {
        form(visit, &Form { path: &format!("jobs/{name}/{verb}"), label, hidden: &[], visible: &[], hint })
    };
    html! {
        div.actions {
            @if job.paused.is_some() {
                (simple("resume", "Resume", "The next scheduled time is run again; those of the pause are not."))
            } @else {
                (simple("pause", "Pause", "A run in progress continues, and no other starts until the job is resumed."))
                (simple("trigger", "Trigger", "The job runs once now, in addition to its schedule."))
            }
            @if let Some(lease) = &job.lease {
                (form(visit, &Form {
                    path: &format!("jobs/{name}/cancel"),
                    label: "Cancel the run",
                    hidden: &[("fencing_token", &lease.fencing_token.to_string())],
                    visible: &[],
                    hint: "The run in progress is requested to stop, and is not repeated.",
                }))
            }
        }
    }
}

/// A table of runs.
pub(super) fn runs(visit: &Visit, runs: &[RunView]) -> Markup {
    let rows = runs.iter().map(|run| {
        [
            run_link(visit, run.id, run.scheduled_at),
            run_badge(run),
            text(milliseconds(run.duration_ms)),
            text(milliseconds(run.lateness_ms.max(0).unsigned_abs())),
            // Most runs need one attempt.
            text(if run.attempt == 1 { String::new() } else { run.attempt.to_string() }),
            text(grouped(run.items)),
            text(&run.daemon_id),
            text(run.error.as_deref().or(run.reason.as_deref()).unwrap_or_default()),
        ]
    });
    let headings = ["scheduled", "status", "#took", "#late", "#attempt", "#items", "~daemon", "why"];
    table(headings, rows, "No runs yet.")
}
