//! The history of runs: one record per attempt, and per range of scheduled times without a run.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::job::FencingToken;

/// The result of a run, or the reason why a scheduled time was not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// The run finished.
    Done,
    /// The attempt failed and is retried.
    Retrying,
    /// The last attempt failed: a dead letter.
    Dead,
    /// The run stopped before its end. Unless it was cancelled, the same occurrence runs again.
    Interrupted,
    /// The misfire policy skipped the scheduled time.
    Skipped,
    /// No daemon ran the job within the misfire grace.
    Missed,
    /// The job was paused.
    Paused,
    /// A time of an edited schedule that had passed before the edit: it was never due.
    Rescheduled,
}

impl RunStatus {
    /// Every status, in the order of the documentation.
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

    /// Returns the status of which [`RunStatus::as_str`] is `word`.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    /// Whether a run began. Otherwise the row is of scheduled times without a run.
    #[must_use]
    pub fn has_run(self) -> bool {
        !matches!(self, Self::Skipped | Self::Missed | Self::Paused | Self::Rescheduled)
    }

    /// Returns the word under which a store keeps it, such as `done`.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunCause {
    /// Its scheduled time.
    #[default]
    Schedule,
    /// An operator requested a run now.
    Manual,
    /// An operator requested this scheduled time again.
    Replay,
    /// It is a one-off job of the queue.
    Queue,
}

impl RunCause {
    /// Returns the cause of which [`RunCause::as_str`] is `word`.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Schedule, Self::Manual, Self::Replay, Self::Queue]
            .into_iter()
            .find(|cause| cause.as_str() == word)
    }

    /// Returns the word under which a store keeps it, such as `schedule`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Manual => "manual",
            Self::Replay => "replay",
            Self::Queue => "queue",
        }
    }
}

/// Several scheduled times in one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OccurrenceRange {
    /// The first scheduled time; the last one is that of the record.
    pub from: DateTime<Utc>,
    /// The number of scheduled times, counted up to [`OccurrenceRange::MAX_COUNTED`].
    pub count: u32,
}

impl OccurrenceRange {
    /// Scheduled times are counted up to this number.
    pub const MAX_COUNTED: u32 = 100_000;
}

/// One row of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The run's id, which the job gets as `ctx.run_id`.
    pub id: Uuid,
    /// The job's name.
    pub job: String,
    /// Whether every daemon has its own run of this scheduled time.
    pub per_node: bool,
    /// The scheduled time; the last one of a range.
    pub scheduled_at: DateTime<Utc>,
    /// The range of scheduled times, if the record covers more than one.
    pub range: Option<OccurrenceRange>,
    /// The result of the run, or why there was none.
    pub status: RunStatus,
    /// What started the run.
    pub cause: RunCause,
    /// The number of the attempt, from 1; 0 if there was no run.
    pub attempt: u32,
    /// The fencing token of the claim; 0 without a lease.
    pub fencing_token: FencingToken,
    /// When the run started.
    pub started_at: DateTime<Utc>,
    /// When the run ended.
    pub finished_at: DateTime<Utc>,
    /// The number of processed items.
    pub items: u64,
    /// The control request that the record answers, or the queued job that ran.
    pub request_id: Option<Uuid>,
    /// Why the scheduled time was not run or the run was interrupted, or who requested it.
    pub reason: Option<String>,
    /// The error message of a failed run.
    pub error: Option<String>,
    /// The job's own figures.
    pub details: serde_json::Value,
}

impl RunRecord {
    /// Returns the record of a scheduled time without a run, written at `now`.
    #[must_use]
    pub fn new(
        job: &str,
        scheduled_at: DateTime<Utc>,
        status: RunStatus,
        cause: RunCause,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            id: Uuid::now_v7(),
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
            request_id: None,
            reason: None,
            error: None,
            details: serde_json::Value::Null,
        }
    }

    /// Whether the record finishes its scheduled time, which a store accepts once.
    #[must_use]
    pub fn finishes_occurrence(&self) -> bool {
        matches!(self.status, RunStatus::Done | RunStatus::Dead)
            && self.cause == RunCause::Schedule
            && !self.per_node
    }

    /// Returns the duration of the run.
    #[must_use]
    pub fn duration(&self) -> Duration {
        (self.finished_at - self.started_at).to_std().unwrap_or_default()
    }

    /// Returns how late the run started, in milliseconds; 0 if it started early.
    #[must_use]
    pub fn lateness_ms(&self) -> i64 {
        (self.started_at - self.scheduled_at).num_milliseconds().max(0)
    }
}
