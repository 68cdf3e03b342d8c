//! What people ask of a job beside its schedule: to pause, to go on, to run now, to stop, to run again.

use std::fmt;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::job::FencingToken;

/// One thing that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlRequest {
    /// Unique; the run that answers it carries it.
    pub id: Uuid,
    /// Of which job.
    pub job: String,
    /// What.
    pub action: ControlAction,
    /// Who.
    pub by: String,
    /// Why, in that person's words.
    pub reason: Option<String>,
    /// When, by the clock of whoever asked, in whole microseconds.
    pub at: DateTime<Utc>,
}

/// What can be asked of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlAction {
    /// Run nothing by schedule until it is resumed.
    Pause,
    /// Go on with the next scheduled time.
    Resume,
    /// Run once now, beside the schedule.
    RunNow,
    /// Run this scheduled time again, beside the schedule.
    Replay {
        /// Which.
        scheduled_at: DateTime<Utc>,
    },
    /// Continue the schedule from the present, if it was finished up to a future time: a clock that was ahead was set back.
    Reset,
    /// Stop the run under way; it is not run again. What was asked for and has not begun is withdrawn.
    Cancel {
        /// The claim that is meant, which the store fills in; 0 for the runs of a job that each node runs by itself.
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
    /// As the reason of a run's row: `asked for by ada@desk: after the outage`.
    #[must_use]
    pub fn description(&self) -> String {
        let verb = match self.action {
            ControlAction::Cancel { .. } => "cancelled",
            ControlAction::Reset => "reset",
            _ => "asked for",
        };
        signed(verb, &self.by, self.reason.as_deref())
    }
}

/// A time in which a job runs nothing by schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Scheduled times from here on are not run.
    pub since: DateTime<Utc>,
    /// Scheduled times from here on are; `None` while it is paused.
    pub until: Option<DateTime<Utc>>,
    /// Who paused it.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
}

impl Pause {
    /// Whether it is over, and this scheduled time came while it lasted.
    pub(crate) fn has_passed_over(&self, at: DateTime<Utc>) -> bool {
        self.since <= at && self.until.is_some_and(|until| at < until)
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&signed("paused", &self.by, self.reason.as_deref()))
    }
}

/// What is asked of all jobs at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlState {
    /// Grows with each request.
    pub revision: i64,
    /// Which jobs are paused.
    pub paused: Vec<(String, Pause)>,
    /// What is to be run or stopped, oldest first.
    pub requests: Vec<ControlRequest>,
}

impl ControlState {
    /// The pause of a job that is in force.
    #[must_use]
    pub fn pause_of(&self, job: &str) -> Option<&Pause> {
        self.paused.iter().find(|(paused, _)| paused == job).map(|(_, pause)| pause)
    }
}

/// Whether a request changed anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlReceipt {
    /// It is written down, and obeyed within two seconds by a process that runs the job.
    Accepted,
    /// Nothing had to be done, and why.
    Unchanged(String),
}

/// Why a reset is not needed.
pub const NOT_AHEAD: &str = "its schedule is not finished up to a future time";

pub(crate) fn signed(verb: &str, by: &str, reason: Option<&str>) -> String {
    match reason {
        Some(reason) => format!("{verb} by {by}: {reason}"),
        None => format!("{verb} by {by}"),
    }
}
