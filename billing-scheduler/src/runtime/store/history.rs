//! The history of runs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::job::FencingToken;

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
pub enum RunCause {
    /// Its scheduled time came.
    #[default]
    Schedule,
    /// A person asked for a run now.
    Manual,
    /// A person asked for this scheduled time again.
    Replay,
}

impl RunCause {
    /// The trigger that is kept as this word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        [Self::Schedule, Self::Manual, Self::Replay].into_iter().find(|cause| cause.as_str() == word)
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
pub struct OccurrenceRange {
    /// The first of them; the last is the row's own.
    pub from: DateTime<Utc>,
    /// How many they are. No more than [`OccurrenceRange::MAX_COUNTED`] are counted.
    pub count: u32,
}

impl OccurrenceRange {
    /// Up to here the scheduled times of a stretch are counted.
    pub const MAX_COUNTED: u32 = 100_000;
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
    pub range: Option<OccurrenceRange>,
    /// How it ended.
    pub status: RunStatus,
    /// What started it.
    pub cause: RunCause,
    /// 1 for the first attempt; 0 if none was made.
    pub attempt: u32,
    /// Under which claim.
    pub fencing_token: FencingToken,
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
        cause: RunCause,
        now: DateTime<Utc>,
    ) -> Self {
        Self::with_id(Uuid::now_v7(), job, scheduled_at, status, cause, now)
    }

    pub(crate) fn with_id(
        id: Uuid,
        job: &str,
        scheduled_at: DateTime<Utc>,
        status: RunStatus,
        cause: RunCause,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            id,
            job: job.to_owned(),
            per_node: false,
            scheduled_at,
            range: None,
            status,
            cause,
            attempt: 0,
            fencing_token: FencingToken(0),
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
