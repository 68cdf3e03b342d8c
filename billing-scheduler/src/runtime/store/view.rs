//! What the store shows of its jobs and of their history.

use std::fmt;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use uuid::Uuid;

use super::{
    history::{RunRecord, RunStatus},
    lease::{ClaimHint, JobState},
    request::Pause,
};
use crate::job::FencingToken;

/// How a job stands in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRow {
    /// Its name.
    pub job: String,
    /// Where its schedule stands.
    pub state: JobState,
    /// What is expected of it, as its last turn left it.
    pub claim_hint: Option<ClaimHint>,
    /// Who runs it now. A lease that has expired holds nothing.
    pub lease: Option<Holder>,
    /// Whether it is paused.
    pub paused: Option<Pause>,
    /// The newest row of its history.
    pub last_run: Option<RunRow>,
}

impl JobRow {
    /// Whether its schedule is finished up to a time after `now`.
    #[must_use]
    pub fn ahead(&self, now: DateTime<Utc>) -> Option<ScheduleAhead> {
        ScheduleAhead::of(
            self.state.cursor,
            self.claim_hint.as_ref().and_then(|claim_hint| claim_hint.next_at),
            now,
        )
    }

    /// Whether it should have run by `now` and did not: its plan's grace is over and nobody is at it, or whoever is at it has
    /// been for longer than a run may take. A paused job is not late.
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

/// Who has a job's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process, as it calls itself.
    pub name: String,
    /// Under which claim.
    pub fencing_token: FencingToken,
    /// Until when, unless it is renewed.
    pub expires_at: DateTime<Utc>,
}

/// A row of the history, and which process wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRow {
    /// What happened.
    pub run: RunRecord,
    /// Who wrote it.
    pub daemon_id: String,
}

/// Which rows of the history. Every condition that is set holds for each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// With this id.
    pub id: Option<Uuid>,
    /// Of this job.
    pub job: Option<String>,
    /// That ended so.
    pub status: Option<RunStatus>,
    /// That started then or later.
    pub since: Option<DateTime<Utc>>,
    /// Of this scheduled time, or of a stretch of them that holds it.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// That answers this request.
    pub request: Option<Uuid>,
    /// At most so many, the newest; 0 is no limit.
    pub limit: u32,
}

impl RunFilter {
    /// Whether every condition holds for `run`.
    #[must_use]
    pub fn matches(&self, run: &RunRecord) -> bool {
        let from = run.range.map_or(run.scheduled_at, |stretch| stretch.from);
        self.id.is_none_or(|id| id == run.id)
            && self.job.as_ref().is_none_or(|job| *job == run.job)
            && self.status.is_none_or(|status| status == run.status)
            && self.since.is_none_or(|since| since <= run.started_at)
            && self.scheduled_at.is_none_or(|at| (from..=run.scheduled_at).contains(&at))
            && self.request.is_none_or(|request| Some(request) == run.request)
    }
}

/// A job that should have run and did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LateJob {
    /// Its name.
    pub job: String,
    /// Which scheduled time is waited for.
    pub scheduled_at: DateTime<Utc>,
    /// Who is at it, and does not come to an end.
    pub held_by: Option<String>,
}

impl fmt::Display for LateJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, scheduled_at, held_by } = self;
        match held_by {
            None => write!(f, "job `{job}` is late: nobody runs what was due at {scheduled_at}"),
            Some(holder) => {
                write!(
                    f,
                    "job `{job}` is late: {holder} is at what was due at {scheduled_at} and does not end"
                )
            }
        }
    }
}

/// A schedule that is finished up to a time still to come, because a clock was ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleAhead {
    /// Up to here it is finished.
    pub cursor: DateTime<Utc>,
    /// When the job runs next; `None` if its schedule has ended by then.
    pub until: Option<DateTime<Utc>>,
}

impl ScheduleAhead {
    /// Clocks of two hosts differ by less than this.
    const TOLERANCE: TimeDelta = TimeDelta::seconds(10);

    /// What `cursor` says at `now`, if it is in the future.
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
