//! When a job is due: pure arithmetic on instants, without a clock.

mod cron;

use std::time::Duration;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

use cron::CronSchedule;

/// When a job is due. Scheduled times are whole seconds.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// Each multiple of the period since 1970-01-01T00:00:00Z.
    Every(Duration),
    /// As a cron text says, in a time zone.
    Cron(CronSchedule),
}

/// Why a schedule is none, or could not be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// A period that is no positive number of whole seconds.
    #[error("a period must be a whole number of seconds and at least one, not {0:?}")]
    Period(Duration),
    /// Text that is no cron expression.
    #[error("`{text}` is no cron expression: {reason}")]
    Cron {
        /// As written.
        text: String,
        /// What the parser says.
        reason: String,
    },
    /// A name that is no time zone, or one whose rules this machine does not have.
    #[error("unknown time zone `{0}`: use a name of the IANA database such as `Europe/Berlin` or `UTC`")]
    Zone(String),
    /// An expression that matches no day of any year.
    #[error("`{0}` never comes: no such date exists")]
    NeverComes(String),
    /// The next time could not be computed. This does not mean that there is none.
    #[error("cannot compute the time after {after} of `{text}`: {reason}")]
    Search {
        /// The expression.
        text: String,
        /// Where the search started.
        after: DateTime<Utc>,
        /// What the cron library says.
        reason: String,
    },
}

/// A stretch without a scheduled time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The scheduled time before it.
    pub after: DateTime<Utc>,
    /// The one that ends it; `None` if the schedule ends.
    pub until: Option<DateTime<Utc>>,
}

impl Schedule {
    /// Due at each multiple of `period` since the epoch: `1h` is each full hour in UTC.
    pub fn every(period: Duration) -> Result<Self, ScheduleError> {
        let whole_seconds = period.subsec_nanos() == 0 && period.as_secs() > 0;
        let in_range = i64::try_from(period.as_secs()).is_ok_and(|seconds| seconds <= 10 * 366 * 86_400);
        if whole_seconds && in_range { Ok(Self::Every(period)) } else { Err(ScheduleError::Period(period)) }
    }

    /// Due as `text` says (5 or 6 fields, or a nickname such as `@hourly`) in the IANA zone named `zone`.
    ///
    /// Where clocks go forward, a time that is skipped runs at the first instant after the gap; where they go back, a
    /// fixed hour runs once and a wildcard hour runs in both passes, as cron has it.
    pub fn cron(text: &str, zone: &str) -> Result<Self, ScheduleError> {
        CronSchedule::parse(text, zone).map(Self::Cron)
    }

    /// The first scheduled time after `instant`; `None` if there is none.
    pub fn next_after(&self, instant: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, ScheduleError> {
        match self {
            Self::Every(period) => {
                let period = TimeDelta::from_std(*period).map_err(|_| ScheduleError::Period(*period))?;
                Ok(instant.duration_trunc(period).ok().and_then(|at| at.checked_add_signed(period)))
            }
            Self::Cron(cron) => cron.next_after(instant),
        }
    }

    /// The last scheduled time that is not after `instant`, looking back at most about ten years.
    pub fn last_until(&self, instant: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, ScheduleError> {
        let mut window = TimeDelta::hours(1);
        while window < TimeDelta::days(3_660) {
            let mut last = None;
            let mut from = instant - window;
            while let Some(next) = self.next_after(from)?.filter(|next| *next <= instant) {
                last = Some(next);
                from = next;
            }
            if last.is_some() {
                return Ok(last);
            }
            window = window * 2;
        }
        Ok(None)
    }

    /// The first gap wider than `limit` between two neighbouring scheduled times, from the first one that is not before
    /// `from` on and for about two years. A schedule without any time from then on is all gap.
    pub fn gap_above(&self, limit: TimeDelta, from: DateTime<Utc>) -> Result<Option<Gap>, ScheduleError> {
        let Some(mut at) = self.next_after(from - TimeDelta::seconds(1))? else {
            return Ok(Some(Gap { after: from, until: None }));
        };
        let horizon = at + TimeDelta::days(740);
        while at < horizon {
            // Two times within the limit of one another leave no room for a gap: a dense schedule is crossed in strides.
            let stride = self.next_after(at + limit / 2)?;
            if let Some(next) = stride.filter(|next| *next - at <= limit) {
                at = next;
                continue;
            }
            match self.next_after(at)? {
                Some(next) if next - at <= limit => at = next,
                next => return Ok(Some(Gap { after: at, until: next })),
            }
        }
        Ok(None)
    }
}
