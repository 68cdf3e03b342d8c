//! What survives a restart: one row per job, four verbs on it.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::FencingToken;

/// How long before its end a lease is no longer trusted by its holder.
const LEASE_MARGIN: Duration = Duration::from_secs(2);

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
    /// node) only the history grows.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if the lease's token is no longer the newest; nothing is written then.
    async fn record(&self, lease: Option<&Lease>, run: &RunRecord, next: &JobState)
    -> Result<(), StoreError>;

    /// Gives a lease back, so that the next claim needs no waiting. Does nothing if it is lost.
    async fn release(&self, lease: &Lease) -> Result<(), StoreError>;
}

/// The answer to a claim.
#[derive(Clone, Debug)]
pub enum Claim {
    /// The job is yours until the lease ends.
    Held(Lease),
    /// Somebody has it.
    Busy {
        /// Whose it is, as that process calls itself.
        holder: String,
    },
}

/// The right to run one job for a while.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The job's name.
    pub job: String,
    /// The number of this claim.
    pub fence: FencingToken,
    /// How long it holds from the moment a claim or renewal was *sent*.
    pub ttl: Duration,
    /// Where the job's schedule stands.
    pub state: JobState,
}

impl Lease {
    /// Until when, by [`Clock::monotonic`](crate::Clock::monotonic), the holder may start work if the claim or the last
    /// renewal was sent at `sent`: two seconds less than the lease, or half of a short one.
    #[must_use]
    pub fn trusted_until(&self, sent: Duration) -> Duration {
        sent + self.ttl.saturating_sub(LEASE_MARGIN).max(self.ttl / 2)
    }
}

/// Where the schedule of a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobState {
    /// Every scheduled time up to here is finished with.
    pub cursor: DateTime<Utc>,
    /// An occurrence that failed and will be tried again.
    pub retrying: Option<Retrying>,
}

/// An occurrence between two attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retrying {
    /// Its scheduled time.
    pub scheduled_at: DateTime<Utc>,
    /// How many attempts failed.
    pub failed_attempts: u32,
    /// When the next one may start.
    pub not_before: DateTime<Utc>,
}

impl JobState {
    /// Finished with everything up to `cursor`.
    #[must_use]
    pub fn at(cursor: DateTime<Utc>) -> Self {
        Self { cursor, retrying: None }
    }
}

/// How a scheduled time, or one attempt at it, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// Finished.
    Done,
    /// Failed, and will be tried again.
    Retrying,
    /// Failed for the last time.
    Dead,
    /// Stopped before the end; the same occurrence runs again.
    Interrupted,
    /// Passed over by policy.
    Skipped,
}

impl RunStatus {
    /// The word kept in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retrying => "retrying",
            Self::Dead => "dead",
            Self::Interrupted => "interrupted",
            Self::Skipped => "skipped",
        }
    }
}

/// What started a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Trigger {
    /// Its scheduled time came.
    #[default]
    Schedule,
    /// A person asked for it.
    Manual,
}

impl Trigger {
    /// The word kept in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Manual => "manual",
        }
    }
}

/// One row of the history.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecord {
    /// Unique; the job saw it as `ctx.run_id`.
    pub id: Uuid,
    /// The job's name.
    pub job: String,
    /// Whether each daemon has its own run of this scheduled time.
    pub per_node: bool,
    /// Which occurrence.
    pub scheduled_at: DateTime<Utc>,
    /// How it ended.
    pub status: RunStatus,
    /// What started it.
    pub trigger: Trigger,
    /// 1 for the first attempt; 0 if none was made.
    pub attempt: u32,
    /// Under which claim.
    pub fence: FencingToken,
    /// When the run began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// How many things were worked on.
    pub items: u64,
    /// Why it was skipped, interrupted or is dead.
    pub reason: Option<String>,
    /// What failed.
    pub error: Option<String>,
    /// The job's own figures.
    pub details: serde_json::Value,
}

impl RunRecord {
    /// How late the run began, in milliseconds; 0 if it began early.
    #[must_use]
    pub fn lateness_ms(&self) -> i64 {
        (self.started_at - self.scheduled_at).num_milliseconds().max(0)
    }
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The lease is not, or no longer, the newest: stop, somebody else goes on.
    #[error("the lease of job `{job}` under fence {fence} is lost")]
    LeaseLost {
        /// The job's name.
        job: String,
        /// The number that is no longer the newest.
        fence: FencingToken,
    },
    /// The occurrence is done or dead already.
    #[error("an earlier run of job `{job}` scheduled at {scheduled_at} is recorded as finished")]
    AlreadyFinished {
        /// The job's name.
        job: String,
        /// The scheduled time.
        scheduled_at: DateTime<Utc>,
    },
    /// The store did not answer, or not as expected.
    #[error("{0}")]
    Unavailable(#[source] crate::BoxError),
}
