//! When a job runs, as a pure function of its specification, its state and the time.

use std::{fmt, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    schedule::ScheduleError,
    spec::{JobSpec, Misfire},
};
use crate::runtime::store::JobState;

/// The decision of [`due`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Run this occurrence.
    Now {
        /// The occurrence's scheduled time.
        scheduled_at: DateTime<Utc>,
        /// 1 for the first attempt.
        attempt: u32,
        /// The earliest of the scheduled times that are coalesced into this run.
        coalesced_from: Option<DateTime<Utc>>,
    },
    /// Skip these scheduled times, then decide again.
    Skip(Skipped),
    /// Nothing is due before this instant.
    Later(DateTime<Utc>),
    /// The schedule has ended.
    Never,
}

/// Scheduled times that are skipped together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The first skipped scheduled time.
    pub from: DateTime<Utc>,
    /// The last skipped scheduled time.
    pub until: DateTime<Utc>,
    /// The number of scheduled times; [`Skipped::MAX_COUNTED`] means that many or more.
    pub count: u32,
    /// Why they are skipped.
    pub reason: SkipReason,
}

/// Why scheduled times are skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// The job's misfire policy is to skip.
    Policy,
    /// They are older than the job's misfire grace.
    Grace(Duration),
    /// More scheduled times than this limit wait to be caught up.
    CatchUpLimit(u32),
}

impl Skipped {
    /// Scheduled times are counted up to this number.
    pub const MAX_COUNTED: u32 = 10_000;
}

/// The reason for the history.
impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => f.write_str("a scheduled time was missed")?,
            Self::MAX_COUNTED => {
                write!(f, "{} scheduled times or more were missed since {}", self.count, self.from)?;
            }
            count => write!(f, "{count} scheduled times were missed since {}", self.from)?,
        }
        match self.reason {
            SkipReason::Policy => f.write_str(", and the job's misfire policy is to skip"),
            SkipReason::Grace(grace) => write!(f, " by more than the grace of {} s", grace.as_secs()),
            SkipReason::CatchUpLimit(1) => f.write_str(", and only the latest one is caught up"),
            SkipReason::CatchUpLimit(limit) => write!(f, ", and only the latest {limit} are caught up"),
        }
    }
}

/// Decides what to do about a job in `state` at `now`. The cost does not depend on how much time has passed.
///
/// # Errors
/// The next scheduled time cannot be computed. This never means that the schedule has ended: that is [`Due::Never`].
pub fn due(spec: &JobSpec, state: &JobState, now: DateTime<Utc>) -> Result<Due, ScheduleError> {
    due_until(spec, state, DateTime::<Utc>::MAX_UTC, now)
}

/// Decides like [`due`] about a schedule that ends at `end`.
pub(crate) fn due_until(
    spec: &JobSpec,
    state: &JobState,
    end: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Due, ScheduleError> {
    if let Some(retrying) = state.retrying {
        // No backoff is that long: the clock was ahead and has been set back.
        let wait_is_void = TimeDelta::from_std(spec.retry.max_backoff)
            .is_ok_and(|longest| retrying.not_before.signed_duration_since(now) > longest);
        return Ok(if retrying.not_before <= now || wait_is_void {
            Due::Now {
                scheduled_at: retrying.scheduled_at,
                attempt: retrying.failed_attempts + 1,
                coalesced_from: None,
            }
        } else {
            Due::Later(retrying.not_before)
        });
    }
    let first = spec.schedule.next_after(state.cursor)?.filter(|first| *first <= end);
    let Some(first) = first else { return Ok(Due::Never) };
    let starts_at = spec.starts_at(first);
    if starts_at > now {
        return Ok(Due::Later(starts_at));
    }
    let range = DueRange { spec, after: state.cursor, first, last: last_started(spec, first, end, now)? };
    range.decide(now)
}

/// One or more scheduled times whose start has passed.
struct DueRange<'s> {
    spec: &'s JobSpec,
    after: DateTime<Utc>,
    first: DateTime<Utc>,
    last: DateTime<Utc>,
}

impl DueRange<'_> {
    fn decide(&self, now: DateTime<Utc>) -> Result<Due, ScheduleError> {
        let Self { spec, first, last, .. } = *self;
        let oldest = spec.grace().and_then(|grace| now.checked_sub_signed(TimeDelta::from_std(grace).ok()?));
        let too_late = |at: DateTime<Utc>| oldest.is_some_and(|oldest| at < oldest);
        let reason = match spec.misfire_grace {
            None => SkipReason::Policy,
            Some(grace) => SkipReason::Grace(grace),
        };
        if too_late(last) {
            return self.skip_until(last, reason);
        }
        match spec.misfire {
            Misfire::Coalesce => Ok(Self::run(last, (last > first).then_some(first))),
            // A fresh scheduled time is run; only those before it are skipped.
            Misfire::Skip if last > first => self.skip_before(last, SkipReason::Policy),
            Misfire::Skip => Ok(Self::run(last, None)),
            Misfire::CatchUp if too_late(first) => self.skip_before(oldest.unwrap_or(first), reason),
            Misfire::CatchUp if last == first => Ok(Self::run(first, None)),
            Misfire::CatchUp => {
                let limit = spec.catch_up_limit.clamp(1, Skipped::MAX_COUNTED);
                let waiting = spec.schedule.count(self.after, last, limit.saturating_add(1))?;
                if waiting <= limit {
                    return Ok(Self::run(first, None));
                }
                self.skip_before(self.oldest_of_the_latest(limit)?, SkipReason::CatchUpLimit(limit))
            }
        }
    }

    fn run(scheduled_at: DateTime<Utc>, coalesced_from: Option<DateTime<Utc>>) -> Due {
        Due::Now { scheduled_at, attempt: 1, coalesced_from }
    }

    fn skip_until(&self, until: DateTime<Utc>, reason: SkipReason) -> Result<Due, ScheduleError> {
        let count = self.spec.schedule.count(self.after, until, Skipped::MAX_COUNTED)?;
        Ok(Due::Skip(Skipped { from: self.first, until, count, reason }))
    }

    fn skip_before(&self, at: DateTime<Utc>, reason: SkipReason) -> Result<Due, ScheduleError> {
        let before = at - TimeDelta::microseconds(1);
        self.skip_until(self.spec.schedule.last_until(before)?.unwrap_or(self.first), reason)
    }

    /// Returns the oldest of the latest `count` scheduled times.
    fn oldest_of_the_latest(&self, count: u32) -> Result<DateTime<Utc>, ScheduleError> {
        let schedule = &self.spec.schedule;
        // At most `count` come after `high`, more than `count` after `low`.
        let (mut low, mut high) = (self.after, self.last);
        while high - low > TimeDelta::seconds(1) {
            let middle = low + TimeDelta::seconds((high - low).num_seconds() / 2);
            if schedule.count(middle, self.last, count.saturating_add(1))? > count {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(schedule.next_after(high)?.unwrap_or(self.last))
    }
}

/// Returns the last scheduled time up to `end` whose start has passed; that of `first` has.
fn last_started(
    spec: &JobSpec,
    first: DateTime<Utc>,
    end: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<DateTime<Utc>, ScheduleError> {
    let latest = end.min(now);
    // There is rarely more than one.
    if spec.schedule.next_after(first)?.is_none_or(|second| second > latest) {
        return Ok(first);
    }
    let mut last = spec.schedule.last_until(latest)?.unwrap_or(first);
    // With jitter, the start of the latest may be still to come; a sensible jitter is shorter than a period.
    for _ in 0..100 {
        if last <= first || spec.starts_at(last) <= now {
            break;
        }
        last = spec.schedule.last_until(last - TimeDelta::seconds(1))?.unwrap_or(first);
    }
    Ok(last.max(first))
}
