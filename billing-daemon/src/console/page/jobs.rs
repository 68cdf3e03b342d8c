//! Every job: its state, its last runs, and its next one.

use billing_scheduler::RunFilter;

use super::prelude::*;
use crate::status::{JobView, RunView};

/// How many runs of each job are shown.
const RUNS: u32 = 60;
/// Of how many jobs: each costs one query.
const JOBS_WITH_RUNS: usize = 20;

#[derive(Serialize)]
pub(in crate::console) struct Jobs {
    jobs: Vec<JobWithRuns>,
}

#[derive(Serialize)]
struct JobWithRuns {
    #[serde(flatten)]
    job: JobView,
    #[serde(skip)]
    runs: Vec<RunView>,
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<Jobs, Problem> {
    let mut jobs = Vec::new();
    for job in visit.status.jobs.clone() {
        let mut runs = Vec::new();
        if jobs.len() < JOBS_WITH_RUNS {
            let filter = RunFilter { job: Some(job.job.clone()), limit: RUNS, ..RunFilter::default() };
            runs = visit.runs(&filter).await?;
        }
        jobs.push(JobWithRuns { job, runs });
    }
    Ok(Jobs { jobs })
}

impl View for Jobs {
    fn title(&self) -> String {
        "Jobs".to_owned()
    }

    fn body(&self, visit: &Visit) -> Markup {
        let rows = self.jobs.iter().map(|JobWithRuns { job, runs }| {
            [
                link(visit, format!("jobs/{}", job.job), &job.job),
                state(job),
                text(job.schedule.as_deref().unwrap_or("unknown")),
                job.last_run.as_ref().map_or_else(|| text("never"), run_badge),
                job.due_at.map_or_else(|| text("-"), time),
                chart::bars(runs),
            ]
        });
        let headings = ["job", "state", "schedule", "last run", "next run", "last 60 runs"];
        table(headings, rows, "No job is configured.")
    }
}

/// The state of a job with its reason.
pub(super) fn state(job: &JobView) -> Markup {
    let why = job.lateness().or_else(|| job.paused.as_ref().map(ToString::to_string));
    html! {
        (badge(Tone::of_job(job.state), &job.state.to_string()))
        @if let Some(why) = why { " " small { (why) } }
    }
}
