//! Views of the stored jobs and of the history, for operators.

use std::fmt;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    history::{RunCause, RunRecord, RunStatus},
    lease::{ClaimHint, JobState},
    request::Pause,
};
use crate::job::FencingToken;

/// A job in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRow {
    /// The job's name.
    pub job: String,
    /// The job's position in its schedule.
    pub state: JobState,
    /// The claim hint that the last lease cycle left.
    pub claim_hint: Option<ClaimHint>,
    /// The lease, unless it is free or expired.
    pub lease: Option<Holder>,
    /// The current pause.
    pub paused: Option<Pause>,
    /// The newest row of the job's history.
    pub last_run: Option<RunRow>,
}

impl JobRow {
    /// Returns whether the schedule is finished up to a time after `now`.
    #[must_use]
    pub fn ahead(&self, now: DateTime<Utc>) -> Option<ScheduleAhead> {
        ScheduleAhead::of(
            self.state.cursor,
            self.claim_hint.as_ref().and_then(|claim_hint| claim_hint.next_at),
            now,
        )
    }

    /// Returns whether the job should have run by `now` and did not: no process holds its lease and its grace is over, or a run
    /// takes longer than its timeout. A paused job is not late.
    #[must_use]
    pub fn late(&self, now: DateTime<Utc>) -> Option<LateJob> {
        let claim_hint = self.claim_hint.as_ref().filter(|_| self.paused.is_none())?;
        let scheduled_at = claim_hint.next_at?;
        let deadline = if self.lease.is_some() { claim_hint.stuck_at } else { claim_hint.late_at };
        (deadline? < now).then(|| LateJob {
            job: self.job.clone(),
            scheduled_at,
            held_by: self.lease.as_ref().map(|held| held.name.clone()),
        })
    }
}

/// The holder of a job's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The name of the process.
    pub name: String,
    /// The fencing token of the claim.
    pub fencing_token: FencingToken,
    /// When the lease expires, unless it is renewed.
    pub expires_at: DateTime<Utc>,
}

/// A row of the history, with the process that wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRow {
    /// The record of the run.
    pub run: RunRecord,
    /// The name of the process that wrote the row.
    pub daemon_id: String,
}

/// Selects rows of the history that meet every condition that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Only the run with this id.
    pub id: Option<Uuid>,
    /// Only runs of this job.
    pub job: Option<String>,
    /// Only runs with this status.
    pub status: Option<RunStatus>,
    /// Only runs that started at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Only runs of this scheduled time, or of a range that contains it. A queued job has no scheduled time.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// Only the run that answers this control request.
    pub request_id: Option<Uuid>,
    /// The maximum number of rows, the newest; 0 for all.
    pub limit: u32,
}

impl RunFilter {
    /// Whether `run` meets every condition.
    #[must_use]
    pub fn matches(&self, run: &RunRecord) -> bool {
        let from = run.range.map_or(run.scheduled_at, |range| range.from);
        self.id.is_none_or(|id| id == run.id)
            && self.job.as_ref().is_none_or(|job| *job == run.job)
            && self.status.is_none_or(|status| status == run.status)
            && self.since.is_none_or(|since| since <= run.started_at)
            && self
                .scheduled_at
                .is_none_or(|at| run.cause != RunCause::Queue && (from..=run.scheduled_at).contains(&at))
            && self.request_id.is_none_or(|request| Some(request) == run.request_id)
    }
}

/// A job that should have run and did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LateJob {
    /// The job's name.
    pub job: String,
    /// The overdue scheduled time.
    pub scheduled_at: DateTime<Utc>,
    /// The process whose run does not end, if one holds the lease.
    pub held_by: Option<String>,
}

impl fmt::Display for LateJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, scheduled_at, held_by } = self;
        match held_by {
            None => write!(f, "job `{job}` is late: no daemon runs what was due at {scheduled_at}"),
            Some(holder) => {
                write!(
                    f,
                    "job `{job}` is late: the run of {holder} that was due at {scheduled_at} does not end"
                )
            }
        }
    }
}

/// A schedule that is finished up to a future time, because a clock was ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleAhead {
    /// The time up to which the schedule is finished.
    pub cursor: DateTime<Utc>,
    /// The next scheduled time; `None` if the schedule has ended by then.
    pub until: Option<DateTime<Utc>>,
}

impl ScheduleAhead {
    /// The clocks of two hosts differ by less than this.
    const TOLERANCE: TimeDelta = TimeDelta::seconds(10);

    /// Returns the state of a schedule whose `cursor` is after `now`.
    #[must_use]
    pub fn of(cursor: DateTime<Utc>, until: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Self> {
        Self::is_ahead(cursor, now).then_some(Self { cursor, until })
    }

    pub(crate) fn is_ahead(cursor: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        cursor - now > Self::TOLERANCE
    }
}

impl fmt::Display for ScheduleAhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Secs, true);
        match self.until {
            Some(until) => write!(f, "waits until {}", shown(until))?,
            None => f.write_str("has no scheduled time left")?,
        }
        write!(f, ": its schedule is finished up to {}, and the clock was set back since", shown(self.cursor))
    }
}
