//! The one decision of when: pure, total, and asked again after each run.

use chrono::{DateTime, TimeDelta, Utc};

use crate::{JobSpec, JobState, Misfire, ScheduleError};

/// What to do about a job now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Run this occurrence.
    Now {
        /// Its scheduled time.
        scheduled_at: DateTime<Utc>,
        /// 1 for the first attempt.
        attempt: u32,
        /// The earliest scheduled time that this run stands for as well.
        coalesced_from: Option<DateTime<Utc>>,
    },
    /// Pass over everything up to here without a run, and ask again.
    Skip {
        /// The first scheduled time passed over.
        from: DateTime<Utc>,
        /// The last one.
        until: DateTime<Utc>,
    },
    /// Nothing before then.
    Later(DateTime<Utc>),
    /// The schedule has ended.
    Never,
}

/// A scheduled time that is younger than this is late, not missed.
const JUST_NOW: TimeDelta = TimeDelta::minutes(1);

/// Decides what `spec` asks for at `now`, given where the job's schedule stands.
///
/// # Errors
/// The schedule could not be computed. That never means that the job has no more runs.
pub fn due(spec: &JobSpec, state: &JobState, now: DateTime<Utc>) -> Result<Due, ScheduleError> {
    if let Some(retrying) = state.retrying {
        // No wait is that long: a clock that was ahead has been set back since.
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
    let Some(first) = spec.schedule.next_after(state.cursor)? else { return Ok(Due::Never) };
    if first > now {
        return Ok(Due::Later(first));
    }
    let run = |scheduled_at| Due::Now {
        scheduled_at,
        attempt: 1,
        coalesced_from: (scheduled_at > first).then_some(first),
    };
    match spec.misfire {
        Misfire::CatchUp => Ok(run(first)),
        Misfire::Coalesce => Ok(run(spec.schedule.last_until(now)?.unwrap_or(first))),
        Misfire::Skip => {
            let last = spec.schedule.last_until(now)?.unwrap_or(first);
            let fresh = now - last < JUST_NOW;
            if fresh && last == first {
                return Ok(run(first));
            }
            // A fresh one stays; only what lies before it is passed over.
            let until =
                if fresh { spec.schedule.last_until(last - TimeDelta::seconds(1))? } else { Some(last) };
            Ok(Due::Skip { from: first, until: until.unwrap_or(first) })
        }
    }
}
