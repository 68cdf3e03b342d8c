//! Schedules: pure arithmetic on instants, without a clock.

mod builders;
mod cron;
mod cron_error;
mod grammar;
mod text;
mod words;
mod zone;

use std::{
    fmt::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, TimeDelta, Timelike, Utc};

use crate::duration::{Formatted, LONGEST};
use cron::CronSchedule;

pub use builders::{
    Cron, CronText, Daily, Every, IntoSchedule, LocalSchedule, Period, TimesOfDay, cron, daily, every,
};
pub use cron_error::{CronError, CronField};

/// A rule that yields the scheduled times of a job, in whole seconds.
///
/// ```
/// # use std::time::Duration;
/// # use billing_scheduler::{Dst, DstGap, Schedule, chrono::{DateTime, Utc}};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let five_past = Schedule::every(Duration::from_secs(3600))?.offset(Duration::from_secs(300))?;
/// let nightly = Schedule::cron("30 2 * * *", "Europe/Berlin")?;
/// let once = Schedule::at("2026-12-01T00:00:00Z".parse()?)?;
/// let all = Schedule::any([five_past, nightly, once])?;
///
/// // Clocks in Berlin went from 02:00 to 03:00 at 01:00 UTC: 02:30 is due at the first instant after.
/// let night: DateTime<Utc> = "2026-03-29T00:05:00Z".parse()?;
/// assert_eq!(all.next_after(night)?, Some("2026-03-29T01:00:00Z".parse()?));
///
/// let gone = Dst { gap: Some(DstGap::Skip), ..Dst::default() };
/// let careful = Schedule::cron_with("30 2 * * *", "Europe/Berlin", gone)?;
/// assert_eq!(careful.next_after(night)?, Some("2026-03-30T00:30:00Z".parse()?));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Schedule(Rule);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Rule {
    /// Each multiple of the period since the epoch, plus the offset.
    Every {
        period_s: u32,
        offset_s: u32,
    },
    Cron(CronSchedule),
    At(DateTime<Utc>),
    Any(Arc<[Schedule]>),
    Within(Arc<Window>),
}

#[derive(PartialEq, Eq, Hash)]
struct Window {
    schedule: Schedule,
    not_before: Option<DateTime<Utc>>,
    not_after: Option<DateTime<Utc>>,
}

/// The policy for local times that a clock change skips or repeats. The defaults are those of cron(8): a job whose second, minute or
/// hour field begins with `*` repeats over the day, and any other job has times of day, also with lists and ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Dst {
    /// The policy for a skipped time. The default is [`DstGap::Shift`] for times of day, [`DstGap::Skip`] for a job that repeats.
    pub gap: Option<DstGap>,
    /// The policy for a repeated time. The default is [`DstFold::First`] for times of day, [`DstFold::Both`] for a job that
    /// repeats.
    pub fold: Option<DstFold>,
}

/// The policy for local times that a clock skips when it is set forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DstGap {
    /// They are due once together, at the first instant after the gap.
    Shift,
    /// They are not due on that day.
    Skip,
}

/// The policy for local times that repeat when a clock is set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DstFold {
    /// Due at the earlier instant.
    First,
    /// Due at the later instant.
    Last,
    /// The job is due at both instants of the repeated hour.
    Both,
}

/// Why a schedule is invalid, or its next time cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// A text that is not a valid duration.
    #[error("{0}")]
    Duration(String),
    /// A text that is not a time of day.
    #[error("invalid time of day `{0}`: use hours and minutes, such as `02:30`")]
    TimeOfDay(String),
    /// A period that is not a positive number of whole seconds.
    #[error("a period must be a whole number of seconds, at least one and at most ten years, not {0:?}")]
    Period(Duration),
    /// An offset that is not a whole number of seconds below the period, or that has no period.
    #[error("an offset must be a whole number of seconds and shorter than the period, not {0:?}")]
    Offset(Duration),
    /// An invalid cron text, or one that matches no day of any year.
    #[error(transparent)]
    Cron(#[from] CronError),
    /// An unknown time zone, or one whose rules this host does not have.
    #[error("unknown time zone `{0}`: use a name of the IANA database such as `Europe/Berlin` or `UTC`")]
    Zone(String),
    /// A single time with a fraction of a second.
    #[error("a scheduled time is a whole second, not {}", .0.to_rfc3339_opts(SecondsFormat::AutoSi, true))]
    Fraction(DateTime<Utc>),
    /// An empty list of schedules.
    #[error("a list of schedules must have one at least")]
    Empty,
    /// A window that ends before it begins.
    #[error("the window ends at {}, before it begins at {}", iso(*.not_after), iso(*.not_before))]
    Window {
        /// The begin of the window.
        not_before: DateTime<Utc>,
        /// The end of the window.
        not_after: DateTime<Utc>,
    },
    /// A schedule without a scheduled time within its window.
    #[error("`{0}` never comes within its window")]
    NeverWithin(String),
    /// The next time cannot be computed. This does not mean that there is none.
    #[error("cannot compute the time after {after} of `{text}`: {reason}")]
    Search {
        /// The cron text.
        text: String,
        /// The instant at which the search started.
        after: DateTime<Utc>,
        /// The error of the cron library.
        reason: String,
    },
}

/// A period without a scheduled time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleGap {
    /// The scheduled time before the gap.
    pub after: DateTime<Utc>,
    /// The scheduled time that ends the gap; `None` if the schedule ends.
    pub until: Option<DateTime<Utc>>,
}

/// A zone whose rules on this host differ from those that the program was built with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneDifference {
    /// The zone's name in the IANA database.
    pub zone: String,
    /// The first instant at which the rules differ.
    pub from: DateTime<Utc>,
}

/// How far back or ahead a search extends.
const HORIZON: TimeDelta = TimeDelta::days(3_660);

impl Schedule {
    /// Returns a schedule that is due at each multiple of `period` since the epoch: `1h` is each full hour in UTC.
    pub fn every(period: Duration) -> Result<Self, ScheduleError> {
        match whole_seconds(period) {
            Some(period_s) if period_s > 0 => Ok(Self(Rule::Every { period_s, offset_s: 0 })),
            _ => Err(ScheduleError::Period(period)),
        }
    }

    /// Moves each scheduled time by `offset` after the multiple of the period.
    ///
    /// # Errors
    /// The offset is not shorter than the period, or the schedule has none.
    pub fn offset(self, offset: Duration) -> Result<Self, ScheduleError> {
        match (self.0, whole_seconds(offset)) {
            (Rule::Every { period_s, .. }, Some(offset_s)) if offset_s < period_s => {
                Ok(Self(Rule::Every { period_s, offset_s }))
            }
            _ => Err(ScheduleError::Offset(offset)),
        }
    }

    /// Returns a schedule that is due at the times of the cron `text` in the IANA zone named `zone`.
    ///
    /// A text has five fields (minute, hour, day of month, month, day of week), six with the second first, or is a nickname:
    /// `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly` or `@annually`. It has at most 1,024 bytes.
    ///
    /// | field | values | also |
    /// |---|---|---|
    /// | second, minute | 0-59 | |
    /// | hour | 0-23 | |
    /// | day of month | 1-31 | `L` the last day; `LW` the last day from Monday to Friday; `15W` the day from Monday to Friday nearest to the 15th, within the month |
    /// | month | 1-12, JAN-DEC | |
    /// | day of week | 0-7, SUN-SAT; 0 and 7 are Sunday | `FRIL` or `5L` the last Friday of a month; `MON#2` or `1#2` the second Monday |
    ///
    /// A field is `*` for every value, `*/n` for every nth value from the lowest on, or a list of values, ranges `a-b` and ranges
    /// with a step `a-b/n`. Names have three letters in any case. `?` is `*`, in the two day fields. A `*` or `*/n` is the only item of its list,
    /// `L`, `W` and `#` are parts of a list but not of a range, and `L` and `LW` exclude each other. Not supported are `L-3`,
    /// `a/n` without the end of the range, ranges that go backwards, years, `H` and `~`.
    ///
    /// **Day of month and day of week together mean OR**: `0 0 13 * FRI` is due on each 13th and on each Friday. A day field is
    /// left out of that only if it is exactly `*` or `?`; `*/2` is not.
    ///
    /// **Where clocks change**, the defaults are those of cron(8). A job whose second, minute or hour field begins with `*`
    /// repeats over the day and follows the wall clock: it does not run at skipped times, and runs in both passes of a repeated
    /// hour. Any other job has times of day: a skipped one runs at the first instant after the gap, a repeated one once, in the
    /// first pass.
    ///
    /// # Errors
    /// [`ScheduleError::Cron`] names the field, the value, its place in the text and the correction. Validation takes time
    /// linear in the text and does no search.
    pub fn cron(text: &str, zone: &str) -> Result<Self, ScheduleError> {
        Self::cron_with(text, zone, Dst::default())
    }

    /// Like [`Schedule::cron`], with a policy for skipped and repeated times.
    pub fn cron_with(text: &str, zone: &str, dst: Dst) -> Result<Self, ScheduleError> {
        CronSchedule::parse(text, zone, dst).map(|cron| Self(Rule::Cron(cron)))
    }

    /// Returns a schedule that is due once.
    pub fn at(instant: DateTime<Utc>) -> Result<Self, ScheduleError> {
        if instant.nanosecond() == 0 {
            Ok(Self(Rule::At(instant)))
        } else {
            Err(ScheduleError::Fraction(instant))
        }
    }

    /// Returns a schedule that is due whenever one of `schedules` is; once if several are due at the same instant.
    pub fn any(schedules: impl IntoIterator<Item = Self>) -> Result<Self, ScheduleError> {
        let mut schedules: Vec<Self> = schedules.into_iter().collect();
        match schedules.len() {
            0 => Err(ScheduleError::Empty),
            1 => Ok(schedules.remove(0)),
            _ => Ok(Self(Rule::Any(schedules.into()))),
        }
    }

    /// Limits the scheduled times to this window, whose ends are inclusive.
    ///
    /// # Errors
    /// The window ends before it begins, or contains no scheduled time.
    pub fn within(
        self,
        not_before: Option<DateTime<Utc>>,
        not_after: Option<DateTime<Utc>>,
    ) -> Result<Self, ScheduleError> {
        if let (Some(not_before), Some(not_after)) = (not_before, not_after)
            && not_after < not_before
        {
            return Err(ScheduleError::Window { not_before, not_after });
        }
        if not_before.is_none() && not_after.is_none() {
            return Ok(self);
        }
        let text = self.to_string();
        let schedule = Self(Rule::Within(Arc::new(Window { schedule: self, not_before, not_after })));
        let begin = not_before.and_then(|at| at.checked_sub_signed(TimeDelta::nanoseconds(1)));
        let begin = begin.unwrap_or(DateTime::UNIX_EPOCH);
        if schedule.next_after(begin)?.is_none() {
            return Err(ScheduleError::NeverWithin(text));
        }
        Ok(schedule)
    }

    /// Whether there is at most one scheduled time.
    #[must_use]
    pub fn is_once(&self) -> bool {
        match &self.0 {
            Rule::At(_) => true,
            Rule::Within(window) => window.schedule.is_once(),
            Rule::Every { .. } | Rule::Cron(_) | Rule::Any(_) => false,
        }
    }

    /// Returns the first scheduled time after `instant`; `None` if there is none.
    pub fn next_after(&self, instant: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, ScheduleError> {
        match &self.0 {
            Rule::Every { period_s, offset_s } => {
                let (period, offset) = (i64::from(*period_s), i64::from(*offset_s));
                let begun = (instant.timestamp() - offset).div_euclid(period);
                Ok(DateTime::from_timestamp((begun + 1) * period + offset, 0))
            }
            Rule::Cron(cron) => cron.next_after(instant),
            Rule::At(at) => Ok((*at > instant).then_some(*at)),
            Rule::Any(schedules) => {
                let mut first: Option<DateTime<Utc>> = None;
                for schedule in schedules.iter() {
                    let next = schedule.next_after(instant)?;
                    first = match (first, next) {
                        (Some(first), Some(next)) => Some(first.min(next)),
                        (first, next) => first.or(next),
                    };
                }
                Ok(first)
            }
            Rule::Within(window) => {
                let begin = window.not_before.and_then(|at| at.checked_sub_signed(TimeDelta::nanoseconds(1)));
                let next = window.schedule.next_after(begin.map_or(instant, |begin| begin.max(instant)))?;
                Ok(next.filter(|next| window.not_after.is_none_or(|end| *next <= end)))
            }
        }
    }

    /// Returns the last scheduled time that is not after `instant`, within about ten years.
    pub fn last_until(&self, instant: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, ScheduleError> {
        if let Rule::Every { period_s, .. } = &self.0 {
            let Some(next) = self.next_after(instant)? else { return Ok(None) };
            return Ok(next.checked_sub_signed(TimeDelta::seconds(i64::from(*period_s))));
        }
        // The result is in (low, high]; each step halves that range.
        let Some(high) = DateTime::from_timestamp(instant.timestamp(), 0) else { return Ok(None) };
        let Some(low) = high.checked_sub_signed(HORIZON) else { return Ok(None) };
        let (mut low, mut high, mut last) = (low, high, None);
        while low < high {
            let middle = low + TimeDelta::seconds((high - low).num_seconds() / 2);
            match self.next_after(middle)?.filter(|next| *next <= high) {
                Some(next) => (low, last) = (next, Some(next)),
                None => high = middle,
            }
        }
        Ok(last)
    }

    /// Returns the number of scheduled times after `after` and up to `until`, counted up to `limit`.
    pub fn count(
        &self,
        after: DateTime<Utc>,
        until: DateTime<Utc>,
        limit: u32,
    ) -> Result<u32, ScheduleError> {
        if let Rule::Every { period_s, offset_s } = &self.0 {
            let begun =
                |at: DateTime<Utc>| (at.timestamp() - i64::from(*offset_s)).div_euclid(i64::from(*period_s));
            let count = (begun(until) - begun(after)).max(0);
            return Ok(u32::try_from(count).unwrap_or(u32::MAX).min(limit));
        }
        let (mut count, mut at) = (0, after);
        while count < limit
            && let Some(next) = self.next_after(at)?.filter(|next| *next <= until)
        {
            (count, at) = (count + 1, next);
        }
        Ok(count)
    }

    /// Returns the first gap wider than `limit` between two neighbouring scheduled times, from the first one that is not before
    /// `from` on and for about two years. A schedule without any time from then on is a gap without an end.
    pub fn gap_above(
        &self,
        limit: TimeDelta,
        from: DateTime<Utc>,
    ) -> Result<Option<ScheduleGap>, ScheduleError> {
        let Some(mut at) = self.next_after(from - TimeDelta::seconds(1))? else {
            return Ok(Some(ScheduleGap { after: from, until: None }));
        };
        let horizon = at + TimeDelta::days(740);
        while at < horizon {
            // Two times within the limit of each other have no wider gap between them, so a dense schedule is searched in strides.
            let stride = self.next_after(at + limit / 2)?;
            if let Some(next) = stride.filter(|next| *next - at <= limit) {
                at = next;
                continue;
            }
            match self.next_after(at)? {
                Some(next) if next - at <= limit => at = next,
                next => return Ok(Some(ScheduleGap { after: at, until: next })),
            }
        }
        Ok(None)
    }

    /// Returns the shortest time between two neighbouring scheduled times among the next thousand after `from`; `None` if there are
    /// fewer than two.
    pub fn shortest_gap(&self, from: DateTime<Utc>) -> Result<Option<TimeDelta>, ScheduleError> {
        if let Rule::Every { period_s, .. } = &self.0 {
            return Ok(Some(TimeDelta::seconds(i64::from(*period_s))));
        }
        let (mut shortest, mut last) = (None, self.next_after(from)?);
        for _ in 0..1_000 {
            let Some(at) = last else { break };
            last = self.next_after(at)?;
            let gap = last.map(|next| next - at);
            shortest = match (shortest, gap) {
                (Some(shortest), Some(gap)) => Some(gap.min(shortest)),
                (shortest, gap) => shortest.or(gap),
            };
        }
        Ok(shortest)
    }

    /// Returns the zones of this schedule whose rules on this host, for the ten years from `from` on, differ from those that the
    /// program was built with. The host's rules are used.
    #[must_use]
    pub fn zone_differences(&self, from: DateTime<Utc>) -> Vec<ZoneDifference> {
        match &self.0 {
            Rule::Every { .. } | Rule::At(_) => vec![],
            Rule::Cron(cron) => {
                let first = zone::first_difference(cron.zone(), from, from + HORIZON);
                let name = cron.zone().iana_name().unwrap_or_default();
                first.map(|from| ZoneDifference { zone: name.to_owned(), from }).into_iter().collect()
            }
            Rule::Any(schedules) => {
                let mut found: Vec<_> =
                    schedules.iter().flat_map(|schedule| schedule.zone_differences(from)).collect();
                found.sort_by(|a, b| a.zone.cmp(&b.zone));
                found.dedup();
                found
            }
            Rule::Within(window) => window.schedule.zone_differences(from),
        }
    }
}

impl Schedule {
    /// Whether the schedule is formatted as `text`.
    pub(crate) fn reads(&self, text: &str) -> bool {
        let mut rest = Rest(text);
        write!(rest, "{self}").is_ok() && rest.0.is_empty()
    }
}

/// The rest of an expected text. Writing anything else fails.
struct Rest<'t>(&'t str);

impl fmt::Write for Rest<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(part).ok_or(fmt::Error)?;
        Ok(())
    }
}

/// Formats the schedule for people: `every 1h, 5m after`, `0 30 2 * * * in Europe/Berlin`, `at 2026-12-01T00:00:00Z`.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Rule::Every { period_s, offset_s } => {
                let seconds = |seconds: u32| Formatted(Duration::from_secs(seconds.into()));
                write!(f, "every {}", seconds(*period_s))?;
                if *offset_s > 0 { write!(f, ", {} after", seconds(*offset_s)) } else { Ok(()) }
            }
            Rule::Cron(cron) => cron.fmt(f),
            Rule::At(at) => write!(f, "at {}", iso(*at)),
            Rule::Any(schedules) => {
                for (place, schedule) in schedules.iter().enumerate() {
                    write!(f, "{}{schedule}", if place > 0 { "; " } else { "" })?;
                }
                Ok(())
            }
            Rule::Within(window) => {
                match &window.schedule.0 {
                    Rule::Any(_) => write!(f, "({})", window.schedule)?,
                    _ => write!(f, "{}", window.schedule)?,
                }
                window.limits(f)
            }
        }
    }
}

impl Window {
    fn limits(&self, f: &mut impl fmt::Write) -> fmt::Result {
        self.not_before.iter().try_for_each(|at| write!(f, ", not before {}", iso(*at)))?;
        self.not_after.iter().try_for_each(|at| write!(f, ", not after {}", iso(*at)))
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({self})")
    }
}

fn whole_seconds(duration: Duration) -> Option<u32> {
    let fits = duration.subsec_nanos() == 0 && duration <= LONGEST;
    u32::try_from(duration.as_secs()).ok().filter(|_| fits)
}

fn iso(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}
