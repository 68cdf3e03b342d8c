//! What survives a restart: one row per job and four verbs on it, what people ask of it, and the history.

mod history;
mod lease;
mod request;
mod view;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::job::{BoxError, FencingToken};

pub(crate) use self::request::signed;
pub use self::{
    history::{OccurrenceRange, RunCause, RunRecord, RunStatus},
    lease::{Claim, ClaimHint, JobState, Lease, Retrying},
    request::{ControlAction, ControlReceipt, ControlRequest, ControlState, NOT_AHEAD, Pause},
    view::{Holder, JobRow, LateJob, RunFilter, RunRow, ScheduleAhead},
};

/// Where jobs' leases, cursors and history live. The suite behind the feature `conformance` proves an
/// implementation.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Claims the lease of `job` for one turn, under a fencing token greater than every earlier one, if it is free or
    /// expired. A job that the store has never seen begins with `first_cursor`.
    ///
    /// When this returns a lease, nobody can commit work under an older token any more.
    async fn acquire(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim, StoreError>;

    /// Extends a lease by its full length. Called from a thread of its own: use a connection of its own.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if it expired or was taken over.
    async fn renew(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Appends a run to the history and moves the job's state, both or neither. Without a lease (a job that runs on every
    /// node) only the history grows. The request that the run answers is closed with it, and so is every wish to cancel it.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if the lease's token is no longer the newest; nothing is written then.
    async fn record(&self, lease: Option<&Lease>, run: &RunRecord, next: &JobState)
    -> Result<(), StoreError>;

    /// [`Store::record`] and [`Store::release`] in one, for the last run of a turn: both or neither, if a store can do that. If this
    /// fails, the lease may or may not have been given back.
    async fn finish(&self, lease: &Lease, run: &RunRecord, next: &JobState) -> Result<(), StoreError> {
        self.record(Some(lease), run, next).await?;
        self.release(lease).await
    }

    /// Gives a lease back, so that the next claim needs no waiting, and leaves its plan. Does nothing if it is lost.
    async fn release(&self, lease: &Lease) -> Result<(), StoreError>;

    /// What people ask of all jobs, if that changed since the revision `known`. Called about once a second: one cheap question.
    async fn control_state(&self, known: Option<i64>) -> Result<Option<ControlState>, StoreError>;

    /// Writes down who asked for what and why, for ever, and makes it a wish. The answer tells if there was nothing to do: a
    /// job that is paused is not paused again. A wish to cancel names the claim that is in force, and withdraws what was asked
    /// for before and has not begun.
    async fn request(&self, request: &ControlRequest) -> Result<ControlReceipt, StoreError>;

    /// How every job stands that was ever claimed, by name.
    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError>;

    /// The jobs that should have run by `now` and did not, by name. Asked every ten seconds.
    async fn late(&self, now: DateTime<Utc>) -> Result<Vec<LateJob>, StoreError> {
        Ok(self.jobs().await?.iter().filter_map(|row| row.late(now)).collect())
    }

    /// Rows of the history, newest first.
    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError>;
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The lease is not, or no longer, the newest: stop, somebody else goes on.
    #[error("the lease of job `{job}` under fencing token {fencing_token} is lost")]
    LeaseLost {
        /// The job's name.
        job: String,
        /// The number that is no longer the newest.
        fencing_token: FencingToken,
    },
    /// The occurrence is done or dead already.
    #[error("an earlier run of job `{job}` scheduled at {scheduled_at} is recorded as finished")]
    AlreadyFinished {
        /// The job's name.
        job: String,
        /// The scheduled time.
        scheduled_at: DateTime<Utc>,
    },
    /// Neither the store nor this process knows a job of that name.
    #[error("unknown job `{job}`")]
    UnknownJob {
        /// The name.
        job: String,
    },
    /// The store did not answer, or not as expected.
    #[error("{0}")]
    Unavailable(#[source] BoxError),
}
