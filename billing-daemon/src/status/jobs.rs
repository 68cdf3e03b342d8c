//! The jobs that the database or the configuration knows.

use billing_scheduler::{JobRow, JobSpec, Pause, RunFilter, RunRow, Scope};
use billing_store::{read_control_state, read_job, read_jobs, read_last_runs, read_runs};
use chrono::{DateTime, Utc};
use sea_orm::{DatabaseConnection, DbErr};

use super::{JobState, JobView};

/// The configuration that the rows of jobs are compared with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConfiguredJobs<'a> {
    pub(crate) specs: &'a [JobSpec],
    /// Whether a job that is not in `specs` is not configured. Without a configuration that is unknown.
    pub(crate) is_complete: bool,
}

impl<'a> ConfiguredJobs<'a> {
    /// The enabled job with that name.
    pub(crate) fn find(self, name: &str) -> Option<&'a JobSpec> {
        self.specs.iter().find(|spec| spec.name == name)
    }
}

/// Reads every job that the database or the configuration knows, sorted by name.
pub(crate) async fn read_job_views(
    db: &DatabaseConnection,
    configured: ConfiguredJobs<'_>,
    now: DateTime<Utc>,
) -> Result<Vec<JobView>, DbErr> {
    let mut rows: Vec<JobRows> = read_jobs(db).await?.into_iter().map(JobRows::from).collect();
    let paused = read_control_state(db).await?.paused;
    let names = configured.specs.iter().map(|spec| spec.name.clone());
    for name in names.chain(paused.iter().map(|(name, _)| name.clone())) {
        if let Err(place) = rows.binary_search_by(|rows| rows.name.cmp(&name)) {
            rows.insert(place, JobRows::new(name));
        }
    }
    let missing = rows.iter().filter(|rows| rows.row.is_none());
    let missing: Vec<&str> = missing.map(|rows| rows.name.as_str()).collect();
    let mut last_runs = read_last_runs(db, &missing).await?;
    for rows in rows.iter_mut().filter(|rows| rows.row.is_none()) {
        let pause = paused.iter().find(|(name, _)| *name == rows.name);
        rows.paused = pause.map(|(_, pause)| pause.clone());
        rows.last_run = last_runs.remove(&rows.name);
    }
    Ok(rows.into_iter().map(|rows| rows.view(configured, now)).collect())
}

/// Reads one job; `None` if neither the database nor the configuration knows it.
pub(crate) async fn read_job_view(
    db: &DatabaseConnection,
    name: &str,
    configured: ConfiguredJobs<'_>,
    now: DateTime<Utc>,
) -> Result<Option<JobView>, DbErr> {
    let mut rows = JobRows::new(name.to_owned());
    if let Some(row) = read_job(db, name).await? {
        rows = row.into();
    } else {
        rows.paused = read_control_state(db).await?.pause_of(name).cloned();
        if rows.paused.is_none() && configured.find(name).is_none() {
            return Ok(None);
        }
        rows.last_run = read_last_run(db, name).await?;
    }
    Ok(Some(rows.view(configured, now)))
}

async fn read_last_run(db: &DatabaseConnection, job: &str) -> Result<Option<RunRow>, DbErr> {
    let newest = RunFilter { job: Some(job.to_owned()), limit: 1, ..RunFilter::default() };
    Ok(read_runs(db, &newest).await?.pop())
}

/// What the database has about one job. A job that runs on every node need not have a row.
struct JobRows {
    name: String,
    row: Option<JobRow>,
    paused: Option<Pause>,
    last_run: Option<RunRow>,
}

impl From<JobRow> for JobRows {
    fn from(mut row: JobRow) -> Self {
        let (paused, last_run) = (row.paused.clone(), row.last_run.take());
        Self { name: row.job.clone(), row: Some(row), paused, last_run }
    }
}

impl JobRows {
    fn new(name: String) -> Self {
        Self { name, row: None, paused: None, last_run: None }
    }

    fn view(self, configured: ConfiguredJobs<'_>, now: DateTime<Utc>) -> JobView {
        let spec = configured.find(&self.name);
        // A job that was removed from the configuration leaves its row behind.
        let is_configured = spec.is_some() || !configured.is_complete;
        // Of a job that runs on every node the row is left over from another configuration, or has only its requests.
        let runs_on_every_node = spec.is_some_and(|spec| spec.scope == Scope::Node);
        let row = self.row.as_ref();
        let shared_row = row.filter(|_| !runs_on_every_node);
        let late = shared_row.and_then(|row| row.late(now)).filter(|_| is_configured);
        let ahead = shared_row.and_then(|row| row.ahead(now)).filter(|_| is_configured);
        let retrying = row.and_then(|row| row.state.retrying);
        let lease = row.and_then(|row| row.lease.clone());
        let state = if !is_configured {
            JobState::NotConfigured
        } else if late.is_some() {
            JobState::Late
        } else if lease.is_some() {
            JobState::Running
        } else if self.paused.is_some() {
            JobState::Paused
        } else if retrying.is_some() {
            JobState::Retrying
        } else {
            JobState::Waiting
        };
        let hint = row.and_then(|row| row.claim_hint.as_ref());
        let planned = hint.filter(|_| !runs_on_every_node).map(|hint| hint.next_at);
        let computed = || spec.and_then(|spec| spec.schedule.next_after(now).ok().flatten());
        JobView {
            kind: spec.map(|spec| spec.kind.clone()),
            state,
            schedule: spec
                .map(|spec| spec.schedule.to_string())
                .or_else(|| hint.map(|hint| hint.schedule.clone())),
            cursor: shared_row.map(|row| row.state.cursor),
            due_at: retrying.map(|retrying| retrying.not_before).or_else(|| planned.unwrap_or_else(computed)),
            late_seconds: late.map(|late| (now - late.scheduled_at).num_seconds().unsigned_abs()),
            ahead_until: ahead.map(|ahead| ahead.until.unwrap_or(ahead.cursor)),
            lease: lease.map(Into::into),
            paused: self.paused.map(Into::into),
            retrying: retrying.map(Into::into),
            last_run: self.last_run.map(Into::into),
            job: self.name,
        }
    }
}
