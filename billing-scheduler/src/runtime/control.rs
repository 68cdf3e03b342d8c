//! Controls jobs at run time, through the store alone.

use std::{fmt, sync::Arc};

use chrono::{DateTime, SubsecRound, Utc};
use uuid::Uuid;

use super::store::{
    Claim, ControlAction, ControlReceipt, ControlRequest, JobRow, JobState, LateJob, RunCause, RunFilter,
    RunRecord, RunRow, RunStatus, Store, StoreError, signed,
};
use crate::{clock::Clock, job::FencingToken};

/// Controls jobs through the store: the processes that run them poll it for requests.
///
/// A request to run a job that neither the store nor this process knows fails with [`StoreError::UnknownJob`]. A job may be
/// paused before it exists.
#[derive(Clone)]
pub struct Control {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    by: String,
    is_known: IsKnown,
}

/// Returns whether this process knows a job of that name.
type IsKnown = Arc<dyn Fn(&str) -> bool + Send + Sync>;

impl Control {
    /// Returns a handle whose requests are signed with `by`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, by: impl Into<String>) -> Self {
        Self { store, clock, by: by.into(), is_known: Arc::new(|_| false) }
    }

    /// Accepts requests for jobs that the store does not know yet, if `is_known` returns true.
    #[must_use]
    pub fn with_known_jobs(self, is_known: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self { is_known: Arc::new(is_known), ..self }
    }

    /// Runs nothing of `job` by schedule until it is resumed. A run in progress continues.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it is unknown whether the request was stored. A repeated one changes nothing, and returns
    /// [`ControlReceipt::Unchanged`].
    pub async fn pause(&self, job: &str, reason: &str) -> Result<ControlReceipt, StoreError> {
        self.submit(job, ControlAction::Pause, Some(reason)).await.map(|(receipt, _)| receipt)
    }

    /// Continues with the next scheduled time. The scheduled times of the pause are recorded as paused.
    pub async fn resume(&self, job: &str, reason: Option<&str>) -> Result<ControlReceipt, StoreError> {
        self.submit(job, ControlAction::Resume, reason).await.map(|(receipt, _)| receipt)
    }

    /// Runs `job` once, now, even if it is paused. Returns the id of the request: [`RunFilter::request_id`] finds its run.
    ///
    /// # Errors
    /// [`StoreError::UnknownJob`] if no job has that name.
    pub async fn run_now(&self, job: &str, reason: Option<&str>) -> Result<Uuid, StoreError> {
        self.check_known(job).await?;
        self.submit(job, ControlAction::RunNow, reason).await.map(|(_, id)| id)
    }

    /// Runs one scheduled time of `job` again. Returns the id of the request.
    ///
    /// # Errors
    /// [`StoreError::UnknownJob`] if no job has that name.
    pub async fn replay(
        &self,
        job: &str,
        scheduled_at: DateTime<Utc>,
        reason: Option<&str>,
    ) -> Result<Uuid, StoreError> {
        self.check_known(job).await?;
        self.submit(job, ControlAction::Replay { scheduled_at }, reason).await.map(|(_, id)| id)
    }

    /// Continues the schedule of `job` from the present if it is finished up to a future time, because a clock was ahead. A
    /// scheduled time that has already run runs again when it comes, with the same idempotency key.
    ///
    /// # Errors
    /// [`StoreError::UnknownJob`] if no job has that name.
    pub async fn reset(&self, job: &str, reason: &str) -> Result<ControlReceipt, StoreError> {
        self.check_known(job).await?;
        self.submit(job, ControlAction::Reset, Some(reason)).await.map(|(receipt, _)| receipt)
    }

    /// Stops the run of `job` in progress, or gives up one that waits to be retried, and withdraws requests that have not
    /// started.
    pub async fn cancel(&self, job: &str, reason: Option<&str>) -> Result<ControlReceipt, StoreError> {
        let action = ControlAction::Cancel { fencing_token: FencingToken(0) };
        let (receipt, id) = self.submit(job, action, reason).await?;
        let row = self.jobs().await?.into_iter().find(|row| row.job == job);
        let waits = |row: &JobRow| row.state.retrying.is_some() && row.lease.is_none();
        let Some(row) = row.filter(waits) else { return Ok(receipt) };
        // No process runs the job, so the retry is given up here, as a lease cycle would do it.
        let Claim::Held(lease) = self.store.acquire(job, row.state.cursor).await? else {
            // Another process has claimed the job since, and applies the request.
            return self.submit(job, action, reason).await.map(|(receipt, _)| receipt);
        };
        let given_up = match lease.state.retrying {
            None => Ok(receipt),
            Some(retrying) => {
                let now = self.clock.now();
                let state = JobState::at(lease.state.cursor.max(retrying.scheduled_at));
                let run = RunRecord {
                    fencing_token: lease.fencing_token,
                    attempt: retrying.failed_attempts,
                    reason: Some(signed("cancelled", &self.by, reason)),
                    request_id: Some(id),
                    ..RunRecord::new(
                        job,
                        retrying.scheduled_at,
                        RunStatus::Interrupted,
                        RunCause::Schedule,
                        now,
                    )
                };
                self.store.record(Some(&lease), &run, &state).await.map(|()| ControlReceipt::Accepted)
            }
        };
        self.store.release(&lease).await?;
        given_up
    }

    /// Returns every job that the store knows, sorted by name.
    pub async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        self.store.jobs().await
    }

    /// Returns the jobs that should have run and did not, in any process.
    pub async fn late(&self) -> Result<Vec<LateJob>, StoreError> {
        self.store.late(self.clock.now()).await
    }

    /// Returns the matching rows of the history, newest first.
    pub async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
        self.store.runs(filter).await
    }

    /// Rejects a job that no process runs: its request would expire.
    async fn check_known(&self, job: &str) -> Result<(), StoreError> {
        if (self.is_known)(job) || self.store.jobs().await?.iter().any(|row| row.job == job) {
            return Ok(());
        }
        // A job that runs on every node has a history but no row.
        let any = RunFilter { job: Some(job.to_owned()), limit: 1, ..RunFilter::default() };
        if self.store.runs(&any).await?.is_empty() {
            return Err(StoreError::UnknownJob { job: job.to_owned() });
        }
        Ok(())
    }

    async fn submit(
        &self,
        job: &str,
        action: ControlAction,
        reason: Option<&str>,
    ) -> Result<(ControlReceipt, Uuid), StoreError> {
        let request = ControlRequest {
            id: Uuid::now_v7(),
            job: job.to_owned(),
            action,
            by: self.by.clone(),
            reason: reason.map(str::to_owned),
            at: self.clock.now().trunc_subsecs(6),
        };
        Ok((self.store.request(&request).await?, request.id))
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("by", &self.by).finish_non_exhaustive()
    }
}
