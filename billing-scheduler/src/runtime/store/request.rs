//! Control requests: to pause, resume, run, replay, reset or cancel a job.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{history::RunRecord, lease::JobState};
use crate::job::FencingToken;

/// A request of an operator to change how a job runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlRequest {
    /// The request's id; the run that answers the request has it in its record.
    pub id: Uuid,
    /// The job's name.
    pub job: String,
    /// The requested action.
    pub action: ControlAction,
    /// Who requested it.
    pub by: String,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// When it was requested, by the caller's clock, in whole microseconds.
    pub at: DateTime<Utc>,
}

/// The action of a control request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlAction {
    /// Run nothing by schedule until the job is resumed.
    Pause,
    /// Continue with the next scheduled time.
    Resume,
    /// Run once now; the schedule does not change.
    RunNow,
    /// Run one scheduled time again; the schedule does not change.
    Replay {
        /// The scheduled time to run again.
        scheduled_at: DateTime<Utc>,
    },
    /// Continue the schedule from the present if it is finished up to a future time, because a clock was ahead.
    Reset,
    /// Stop the run in progress, which is not repeated, and withdraw requests that have not started.
    Cancel {
        /// The fencing token of the claim to cancel, which the store sets; 0 for a job that runs on every node.
        fencing_token: FencingToken,
    },
}

impl ControlAction {
    /// The word kept in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::RunNow => "run_now",
            Self::Replay { .. } => "replay",
            Self::Reset => "reset",
            Self::Cancel { .. } => "cancel",
        }
    }
}

impl ControlRequest {
    /// Returns the reason for a run's record: `requested by ada@host: after the outage`.
    #[must_use]
    pub fn description(&self) -> String {
        let verb = match self.action {
            ControlAction::Cancel { .. } => "cancelled",
            ControlAction::Reset => "reset",
            _ => "requested",
        };
        signed(verb, &self.by, self.reason.as_deref())
    }

    /// Whether a claim of `job` returns the open request: it is not a cancellation.
    #[must_use]
    pub fn is_claimed_with(&self, job: &str) -> bool {
        self.job == job && !matches!(self.action, ControlAction::Cancel { .. })
    }

    /// Whether the record of `run` closes the request: the run answers it, or is the one to cancel.
    #[must_use]
    pub fn is_closed_by(&self, run: &RunRecord) -> bool {
        let is_cancelled = match self.action {
            ControlAction::Cancel { fencing_token } => {
                self.job == run.job && fencing_token.0 > 0 && fencing_token <= run.fencing_token
            }
            _ => false,
        };
        is_cancelled || run.request_id == Some(self.id)
    }
}

/// A period in which a job runs nothing by schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The begin: scheduled times from here on are not run.
    pub since: DateTime<Utc>,
    /// The end: scheduled times from here on are run again. `None` while the job is paused.
    pub until: Option<DateTime<Utc>>,
    /// Who paused the job.
    pub by: String,
    /// Why the job was paused.
    pub reason: Option<String>,
}

impl Pause {
    /// Whether a claim in `state` returns the pause: it had not ended before the scheduled times that are still to be run.
    #[must_use]
    pub fn concerns(&self, state: &JobState) -> bool {
        let open_since = state.retrying.map_or(state.cursor, |it| it.scheduled_at.min(state.cursor));
        self.until.is_none_or(|until| open_since < until)
    }

    /// Whether the pause has ended and the scheduled time `at` was within it.
    pub(crate) fn skipped(&self, at: DateTime<Utc>) -> bool {
        self.since <= at && self.until.is_some_and(|until| at < until)
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&signed("paused", &self.by, self.reason.as_deref()))
    }
}

/// The pauses and open requests of all jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlState {
    /// A number that grows with each request.
    pub revision: i64,
    /// The names of paused jobs, with their pauses.
    pub paused: Vec<(String, Pause)>,
    /// The open requests, oldest first.
    pub requests: Vec<ControlRequest>,
}

impl ControlState {
    /// Returns the current pause of a job.
    #[must_use]
    pub fn pause_of(&self, job: &str) -> Option<&Pause> {
        self.paused.iter().find(|(paused, _)| paused == job).map(|(_, pause)| pause)
    }
}

/// What a store returns to a poll.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorePoll {
    /// The time by the store's clock, which all processes follow. `None` if the store has no clock other than that of the host.
    pub now: Option<DateTime<Utc>>,
    /// The pauses and open requests of all jobs, if they changed since the known revision.
    pub changed: Option<ControlState>,
}

/// Whether a request changed anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlReceipt {
    /// The request is stored. A process that runs the job applies it within two seconds.
    Accepted,
    /// There was nothing to do, for this reason.
    Unchanged(String),
}

/// The receipt of a reset that is not needed.
pub const NOT_AHEAD: &str = "its schedule is not finished up to a future time";

pub(crate) fn signed(verb: &str, by: &str, reason: Option<&str>) -> String {
    match reason {
        Some(reason) => format!("{verb} by {by}: {reason}"),
        None => format!("{verb} by {by}"),
    }
}
