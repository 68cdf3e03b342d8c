//! The jobs that the database or the configuration knows: what the command line, the status and the HTTP interface show alike.

use billing_scheduler::{JobRow, JobSpec, LateJob, Pause, RunFilter, RunRow, Scope};
use chrono::{DateTime, Utc};
use sea_orm::{DatabaseConnection, DbErr};

use billing_store::{read_control_state, read_jobs, read_runs};

/// One job.
pub(crate) struct JobOverview {
    pub(crate) name: String,
    /// What the configuration says of it.
    pub(crate) spec: Option<JobSpec>,
    /// How it stands. A job that each node runs by itself need not have a row.
    pub(crate) row: Option<JobRow>,
    pub(crate) paused: Option<Pause>,
    pub(crate) last: Option<RunRow>,
}

/// Every job that the database knows or `specs` have, by name.
pub(crate) async fn job_overviews(
    db: &DatabaseConnection,
    specs: &[JobSpec],
) -> Result<Vec<JobOverview>, DbErr> {
    let mut jobs: Vec<JobOverview> = Vec::new();
    for row in read_jobs(db).await? {
        let (paused, last) = (row.paused.clone(), row.last_run.clone());
        jobs.push(JobOverview { name: row.job.clone(), spec: None, row: Some(row), paused, last });
    }
    let place = |jobs: &mut Vec<JobOverview>, name: &str| {
        jobs.binary_search_by(|job| (*job.name).cmp(name)).unwrap_or_else(|place| {
            let name = name.to_owned();
            jobs.insert(place, JobOverview { name, spec: None, row: None, paused: None, last: None });
            place
        })
    };
    for spec in specs {
        let place = place(&mut jobs, &spec.name);
        jobs[place].spec = Some(spec.clone());
    }
    for (name, pause) in read_control_state(db).await?.paused {
        let place = place(&mut jobs, &name);
        jobs[place].paused = Some(pause);
    }
    for job in jobs.iter_mut().filter(|job| job.last.is_none()) {
        let newest = RunFilter { job: Some(job.name.clone()), limit: 1, ..RunFilter::default() };
        job.last = read_runs(db, &newest).await?.pop();
    }
    Ok(jobs)
}

impl JobOverview {
    /// Whether it should have run by `now` and did not. Of a job that each node runs by itself only the node can tell.
    pub(crate) fn late(&self, now: DateTime<Utc>) -> Option<LateJob> {
        self.row_of_all()?.late(now)
    }

    /// The first scheduled time that is not finished with; of a job that each node runs by itself, the next one.
    pub(crate) fn next_at(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let planned = self.row_of_all().and_then(|row| row.claim_hint.as_ref()).map(|plan| plan.next_at);
        let computed = || self.spec.as_ref().and_then(|spec| spec.schedule.next_after(now).ok().flatten());
        planned.unwrap_or_else(computed)
    }

    /// Its row, unless each node runs it by itself: that row is left from another configuration, or of what was asked for.
    pub(crate) fn row_of_all(&self) -> Option<&JobRow> {
        self.row.as_ref().filter(|_| !self.is_of_node())
    }

    pub(crate) fn is_of_node(&self) -> bool {
        self.spec.as_ref().is_some_and(|spec| spec.scope == Scope::Node)
    }
}
