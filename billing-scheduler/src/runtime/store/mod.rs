//! The contract of a store: what survives a restart of the scheduler.

mod history;
mod lease;
mod queue;
mod request;
mod view;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::job::{BoxError, FencingToken};

pub use self::{
    history::{OccurrenceRange, RunCause, RunRecord, RunStatus},
    lease::{Claim, ClaimHint, JobState, Lease, ReplacedSchedule, Retrying},
    queue::{NewQueuedJob, QueueNext, QueueResult, QueueStore, QueueTime, QueuedJob},
    request::{ControlAction, ControlReceipt, ControlRequest, ControlState, NOT_AHEAD, Pause, StorePoll},
    view::{Holder, JobRow, LateJob, RunFilter, RunRow, ScheduleAhead},
};
pub(crate) use self::{lease::trusted_until, request::signed};

/// Keeps the leases, cursors, control requests and history of jobs. The suite behind the feature `conformance` tests an
/// implementation.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Claims the lease of `job` if it is free or expired, with a fencing token greater than every earlier one. A job that the
    /// store does not know starts with `first_cursor`.
    ///
    /// Once this returns a lease, no process can commit work under an older token.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it is unknown whether the job was claimed. A claim that the caller does not know of expires.
    async fn acquire(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim, StoreError>;

    /// Extends a lease by its full length. The daemon calls this on a separate thread, so it needs a separate connection.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if the lease expired or another process claimed it: the run must stop. After
    /// [`StoreError::Unavailable`] the lease is used until its end, and the next renewal may succeed.
    async fn renew(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Appends a run to the history and updates the job's state, in one transaction. Without a lease (a job that runs on every
    /// node) only the history changes. The request that the run answers is closed, and so is every request to cancel it.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if the lease's token is not the newest, and [`StoreError::AlreadyFinished`] if another run has
    /// finished the scheduled time; nothing is written then. After [`StoreError::Unavailable`] it may or may not be written.
    async fn record(&self, lease: Option<&Lease>, run: &RunRecord, next: &JobState)
    -> Result<(), StoreError>;

    /// Records the last run of a lease cycle and releases the lease, in one transaction if the store can. If this fails, the lease
    /// may or may not have been released.
    async fn finish(&self, lease: &Lease, run: &RunRecord, next: &JobState) -> Result<(), StoreError> {
        self.record(Some(lease), run, next).await?;
        self.release(lease).await
    }

    /// Releases a lease, so that the next claim need not wait for its end, and stores its claim hint. Does nothing if the lease
    /// is lost. After a failure the same store may claim the lease again before its end: nothing runs under it.
    async fn release(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Returns the time, and the pauses and requests of all jobs if they changed since the revision `known`. Called about once a
    /// second, so it should be one cheap query.
    async fn poll(&self, known: Option<i64>) -> Result<StorePoll, StoreError>;

    /// Opens a control request and logs it in the audit log. The receipt reports whether there was nothing to do: a paused job is
    /// not paused again. A request to cancel gets the fencing token of the current claim, and withdraws earlier requests
    /// that have not started.
    async fn request(&self, request: &ControlRequest) -> Result<ControlReceipt, StoreError>;

    /// Returns every job that was ever claimed, sorted by name.
    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError>;

    /// Returns the jobs that should have run by `now` and did not, sorted by name. Called at every tenth poll.
    async fn late(&self, now: DateTime<Utc>) -> Result<Vec<LateJob>, StoreError> {
        Ok(self.jobs().await?.iter().filter_map(|row| row.late(now)).collect())
    }

    /// Returns the matching rows of the history, newest first.
    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError>;

    /// Returns the queue of one-off jobs in this store; `None` if it has none.
    fn queue(self: Arc<Self>) -> Option<Arc<dyn QueueStore>> {
        None
    }
}

/// Why a request to the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The lease's fencing token is not the newest: another process continues the job.
    #[error("the lease of job `{job}` under fencing token {fencing_token} is lost")]
    LeaseLost {
        /// The job's name.
        job: String,
        /// The fencing token of the lost lease.
        fencing_token: FencingToken,
    },
    /// An earlier run has finished the occurrence.
    #[error("an earlier run of job `{job}` scheduled at {scheduled_at} is recorded as finished")]
    AlreadyFinished {
        /// The job's name.
        job: String,
        /// The occurrence's scheduled time.
        scheduled_at: DateTime<Utc>,
    },
    /// Neither the store nor this process knows the job.
    #[error("unknown job `{job}`")]
    UnknownJob {
        /// The requested name.
        job: String,
    },
    /// The store is unavailable, or returned an unexpected result.
    #[error("{0}")]
    Unavailable(#[source] BoxError),
}

impl StoreError {
    /// Returns the failure of a call whose effect is unknown, or that had none.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        Self::Unavailable(error.into())
    }
}
