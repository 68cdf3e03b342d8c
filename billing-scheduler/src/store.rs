//! What survives a restart: one row per job and four verbs on it, what people ask of it, and the history.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    FencingToken,
    control::{JobRow, Late, Pause, Receipt, Request, RunFilter, RunRow, Wishes},
};

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
    async fn wishes(&self, known: Option<i64>) -> Result<Option<Wishes>, StoreError>;

    /// Writes down who asked for what and why, for ever, and makes it a wish. The answer tells if there was nothing to do: a
    /// job that is paused is not paused again. A wish to cancel names the claim that is in force, and withdraws what was asked
    /// for before and has not begun.
    async fn request(&self, request: &Request) -> Result<Receipt, StoreError>;

    /// How every job stands that was ever claimed, by name.
    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError>;

    /// The jobs that should have run by `now` and did not, by name. Asked every ten seconds.
    async fn late(&self, now: DateTime<Utc>) -> Result<Vec<Late>, StoreError> {
        Ok(self.jobs().await?.iter().filter_map(|row| row.late(now)).collect())
    }

    /// Rows of the history, newest first.
    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError>;
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
    /// What the last turn expected, and, once this one has changed it, what is left at its release.
    pub plan: Option<Plan>,
    /// The pauses that concern what is not finished with, oldest first.
    pub pauses: Vec<Pause>,
    /// What is to be run beside the schedule, oldest first.
    pub requests: Vec<Request>,
}

/// What is expected of a job, so that anybody can tell from its row if it is late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The schedule that says so, as text: another text is another schedule.
    pub schedule: String,
    /// The first scheduled time that is not finished with.
    pub next_at: Option<DateTime<Utc>>,
    /// When it is late, if nobody runs it.
    pub late_at: Option<DateTime<Utc>>,
    /// When it is late even if somebody does.
    pub stuck_at: Option<DateTime<Utc>>,
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
    /// Nobody was there in time.
    Missed,
    /// It came while the job was paused.
    Paused,
    /// A time of a new schedule that had passed before the schedule came into force: it was never due.
    Rescheduled,
}

impl RunStatus {
    /// Each of them.
    pub const ALL: [Self; 8] = [
        Self::Done,
        Self::Retrying,
        Self::Dead,
        Self::Interrupted,
        Self::Skipped,
        Self::Missed,
        Self::Paused,
        Self::Rescheduled,
    ];

    /// The status that is kept as this word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    /// The word kept in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retrying => "retrying",
            Self::Dead => "dead",
            Self::Interrupted => "interrupted",
            Self::Skipped => "skipped",
            Self::Missed => "missed",
            Self::Paused => "paused",
            Self::Rescheduled => "rescheduled",
        }
    }
}

/// What started a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Trigger {
    /// Its scheduled time came.
    #[default]
    Schedule,
    /// A person asked for a run now.
    Manual,
    /// A person asked for this scheduled time again.
    Replay,
}

impl Trigger {
    /// The trigger that is kept as this word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        [Self::Schedule, Self::Manual, Self::Replay].into_iter().find(|trigger| trigger.as_str() == word)
    }

    /// The word kept in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Manual => "manual",
            Self::Replay => "replay",
        }
    }
}

/// Several scheduled times in one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The first of them; the last is the row's own.
    pub from: DateTime<Utc>,
    /// How many they are. No more than [`Stretch::COUNTED`] are counted.
    pub count: u32,
}

impl Stretch {
    /// Up to here the scheduled times of a stretch are counted.
    pub const COUNTED: u32 = 100_000;
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
    /// The scheduled times before it that this row stands for as well.
    pub stretch: Option<Stretch>,
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
    /// The request that it answers.
    pub request: Option<Uuid>,
    /// Why it was skipped, missed, paused or interrupted, or who asked for it.
    pub reason: Option<String>,
    /// What failed.
    pub error: Option<String>,
    /// The job's own figures.
    pub details: serde_json::Value,
}

impl RunRecord {
    /// A row about `scheduled_at` for which nothing has run, written at `now`.
    #[must_use]
    pub fn new(
        job: &str,
        scheduled_at: DateTime<Utc>,
        status: RunStatus,
        trigger: Trigger,
        now: DateTime<Utc>,
    ) -> Self {
        Self::of(Uuid::now_v7(), job, scheduled_at, status, trigger, now)
    }

    pub(crate) fn of(
        id: Uuid,
        job: &str,
        scheduled_at: DateTime<Utc>,
        status: RunStatus,
        trigger: Trigger,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            id,
            job: job.to_owned(),
            per_node: false,
            scheduled_at,
            stretch: None,
            status,
            trigger,
            attempt: 0,
            fence: FencingToken(0),
            started_at: now,
            finished_at: now,
            items: 0,
            request: None,
            reason: None,
            error: None,
            details: serde_json::Value::Null,
        }
    }

    /// How long it ran.
    #[must_use]
    pub fn duration(&self) -> Duration {
        (self.finished_at - self.started_at).to_std().unwrap_or_default()
    }

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
    /// Neither the store nor this process knows a job of that name.
    #[error("unknown job `{job}`")]
    UnknownJob {
        /// The name.
        job: String,
    },
    /// The store did not answer, or not as expected.
    #[error("{0}")]
    Unavailable(#[source] crate::BoxError),
}
