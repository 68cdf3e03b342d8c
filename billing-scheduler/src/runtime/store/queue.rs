//! The contract of a store for one-off jobs. It is separate from [`Store`](crate::Store), so that a store without a queue stays small.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{RunRecord, StoreError};
use crate::job::FencingToken;

/// Keeps one-off jobs. Times are those of the store's clock. The suite behind the feature `conformance` tests an implementation.
#[async_trait]
pub trait QueueStore: Send + Sync + 'static {
    /// Returns the lifetime of a claim, counted from the moment that the claim or its last renewal was sent.
    fn claim_ttl(&self) -> Duration;

    /// Adds jobs in one transaction, and returns the ids of those that were added. A job is not added if the store has its id, or if
    /// an unfinished job of the same kind has the same unique key.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it is unknown whether the jobs were added. The call can be repeated, because an id is added once.
    async fn enqueue(&self, jobs: &[NewQueuedJob]) -> Result<Vec<Uuid>, StoreError>;

    /// Claims due jobs of each kind, up to its limit: those with the highest priority first, then those that are due for the longest
    /// time. A job is not claimed while an unexpired claim holds it. Each claim of a job has a greater fencing token than the last. A
    /// claim that expired without a result counts as a failed attempt of the job.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; jobs that were claimed without an answer are claimed again when these claims expire.
    async fn claim(&self, limits: &[(String, u32)]) -> Result<Vec<QueuedJob>, StoreError>;

    /// Extends claims by their full length, and returns the ids of those that are still held.
    async fn renew_claims(&self, claims: &[(Uuid, FencingToken)]) -> Result<Vec<Uuid>, StoreError>;

    /// Writes the results of runs, each in one transaction with its row in the history, and returns the ids of the jobs that were
    /// written, or that the run itself has finished under the same token. Nothing is written for a job whose claim is lost.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it is unknown whether the results were written. The call can be repeated: it writes no row twice.
    async fn settle(&self, results: &[QueueResult]) -> Result<Vec<Uuid>, StoreError>;

    /// Calls `added` when any process may have added a job that is due, and runs until it is dropped. It saves the worker the wait for
    /// its next poll, and may miss jobs. The default never calls it.
    async fn listen(&self, added: &(dyn Fn() + Send + Sync)) {
        let _ = added;
        std::future::pending::<()>().await;
    }

    /// Removes jobs that were finished longer than `age` ago, and returns their number. Their runs stay in the history.
    async fn prune(&self, age: Duration) -> Result<u64, StoreError>;
}

/// When a one-off job is due. It never starts earlier. Its scheduled time is the second in which it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueTime {
    /// This long after it was added, by the store's clock.
    After(Duration),
    /// At this time.
    At(DateTime<Utc>),
}

impl QueueTime {
    /// Returns when a job is due that is added at `now`.
    #[must_use]
    pub fn due(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::At(at) => at,
            Self::After(after) => TimeDelta::from_std(after)
                .ok()
                .and_then(|after| now.checked_add_signed(after))
                .unwrap_or(DateTime::<Utc>::MAX_UTC),
        }
    }
}

/// A one-off job to add.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewQueuedJob {
    /// The job's id, which the caller draws.
    pub id: Uuid,
    /// The kind, which selects the code that runs.
    pub kind: String,
    /// The data for the run.
    pub payload: serde_json::Value,
    /// When the job is due.
    pub time: QueueTime,
    /// The priority: a greater one is claimed first.
    pub priority: i32,
    /// The key that no two unfinished jobs of a kind share.
    pub unique_key: Option<String>,
}

/// A claimed job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueuedJob {
    /// The job's id.
    pub id: Uuid,
    /// The kind, which selects the code that runs.
    pub kind: String,
    /// The data for the run.
    pub payload: serde_json::Value,
    /// The second in which the job was due for the first time.
    pub scheduled_at: DateTime<Utc>,
    /// The number of failed attempts, with those whose claim expired without a result.
    pub failed_attempts: u32,
    /// The number of this claim.
    pub fencing_token: FencingToken,
}

impl QueuedJob {
    /// Returns a job that was not claimed yet and is due at `due`.
    #[must_use]
    pub fn new(new: &NewQueuedJob, due: DateTime<Utc>) -> Self {
        Self {
            id: new.id,
            kind: new.kind.clone(),
            payload: new.payload.clone(),
            scheduled_at: due.trunc_subsecs(0),
            failed_attempts: 0,
            fencing_token: FencingToken(0),
        }
    }
}

/// The result of a run of a claimed job.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueResult {
    /// The job's id.
    pub id: Uuid,
    /// The row for the history. Its fencing token is that of the claim.
    pub run: RunRecord,
    /// The job's state after the run.
    pub next: QueueNext,
}

/// The state of a job after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueNext {
    /// No further run.
    Finished,
    /// The job runs another time, for example after a failure.
    Again {
        /// The time until that run may start.
        after: Duration,
        /// The number of failed attempts so far.
        failed_attempts: u32,
    },
}

impl NewQueuedJob {
    /// Returns a job that is due immediately, with priority 0, without a unique key, and with a new id.
    #[must_use]
    pub fn new(kind: impl Into<String>, payload: serde_json::Value) -> Self {
        Self {
            id: Uuid::now_v7(),
            kind: kind.into(),
            payload,
            time: QueueTime::After(Duration::ZERO),
            priority: 0,
            unique_key: None,
        }
    }
}
