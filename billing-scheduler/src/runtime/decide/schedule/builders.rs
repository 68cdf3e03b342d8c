//! Schedules as a program writes them: `every("10s")`, `daily().at("02:30")`, `cron("0 * * * *")`. Mistakes in their texts are
//! reported when the job is built, with its name.

use std::time::Duration;

use super::{Dst, Schedule, ScheduleError};
use crate::duration;

/// What a job accepts as its schedule: [`every`], [`daily`], [`cron`], or a [`Schedule`] with or without its error.
pub trait IntoSchedule {
    /// Returns the schedule, or the mistake in it.
    fn into_schedule(self) -> Result<Schedule, ScheduleError>;
}

impl IntoSchedule for Schedule {
    fn into_schedule(self) -> Result<Schedule, ScheduleError> {
        Ok(self)
    }
}

impl IntoSchedule for Result<Schedule, ScheduleError> {
    fn into_schedule(self) -> Result<Schedule, ScheduleError> {
        self
    }
}

/// A period: a [`Duration`], or a text such as `90s` or `1h 30m`.
#[derive(Clone, Debug, PartialEq)]
pub struct Period(Result<Duration, ScheduleError>);

impl From<Duration> for Period {
    fn from(period: Duration) -> Self {
        Self(Ok(period))
    }
}

impl From<&str> for Period {
    fn from(text: &str) -> Self {
        Self(duration::parse(text).map_err(ScheduleError::Duration))
    }
}

/// A schedule that repeats after a fixed time: see [`every`].
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Every {
    period: Period,
    offset: Option<Period>,
}

/// Returns a schedule that is due at each multiple of `period` since the epoch: `every("1h")` is each full hour in UTC.
pub fn every(period: impl Into<Period>) -> Every {
    Every { period: period.into(), offset: None }
}

impl Every {
    /// Moves each scheduled time after the multiple of the period: `every("1h").offset("5m")` is five past each hour.
    pub fn offset(self, offset: impl Into<Period>) -> Self {
        Self { offset: Some(offset.into()), ..self }
    }
}

impl IntoSchedule for Every {
    fn into_schedule(self) -> Result<Schedule, ScheduleError> {
        let schedule = Schedule::every(self.period.0?)?;
        self.offset.map_or(Ok(schedule.clone()), |offset| schedule.offset(offset.0?))
    }
}

/// A cron text with its time zone: see [`cron`].
pub type Cron = LocalSchedule<CronText>;

/// Times of day in a time zone: see [`daily`].
pub type Daily = LocalSchedule<TimesOfDay>;

/// A schedule that follows the local time of a time zone: [`Cron`] or [`Daily`].
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct LocalSchedule<T> {
    times: T,
    zone: String,
    dst: Dst,
}

/// The text of a [`Cron`].
#[derive(Clone, Debug, PartialEq)]
pub struct CronText(String);

/// The times and the weekdays of a [`Daily`].
#[derive(Clone, Debug, PartialEq)]
pub struct TimesOfDay {
    times: Vec<String>,
    weekdays: String,
}

/// Returns a schedule for a cron text, in UTC unless a time zone is set. [`Schedule::cron`] documents the grammar.
pub fn cron(text: impl Into<String>) -> Cron {
    LocalSchedule::utc(CronText(text.into()))
}

/// Returns a schedule that is due once a day, at midnight in UTC unless times and a time zone are set:
/// `daily().on("MON-FRI").at("09:00").at("17:30").timezone("Europe/Berlin")`.
pub fn daily() -> Daily {
    LocalSchedule::utc(TimesOfDay { times: Vec::new(), weekdays: "*".to_owned() })
}

impl<T> LocalSchedule<T> {
    fn utc(times: T) -> Self {
        Self { times, zone: "UTC".to_owned(), dst: Dst::default() }
    }

    /// Sets the IANA time zone, such as `Europe/Berlin`.
    pub fn timezone(self, zone: impl Into<String>) -> Self {
        Self { zone: zone.into(), ..self }
    }

    /// Sets the policy for local times that a clock change skips or repeats.
    pub fn dst(self, dst: Dst) -> Self {
        Self { dst, ..self }
    }

    fn cron(&self, text: &str) -> Result<Schedule, ScheduleError> {
        Schedule::cron_with(text, &self.zone, self.dst)
    }
}

impl Daily {
    /// Adds a time of day: `02:30`, or `02:30:15` with seconds.
    pub fn at(mut self, time: impl Into<String>) -> Self {
        self.times.times.push(time.into());
        self
    }

    /// Limits the schedule to days of the week, as in a cron text: `MON-FRI`, `SAT,SUN`, `FRIL` for the last Friday of a month.
    pub fn on(mut self, weekdays: impl Into<String>) -> Self {
        self.times.weekdays = weekdays.into();
        self
    }
}

impl IntoSchedule for Cron {
    fn into_schedule(self) -> Result<Schedule, ScheduleError> {
        self.cron(&self.times.0)
    }
}

impl IntoSchedule for Daily {
    fn into_schedule(self) -> Result<Schedule, ScheduleError> {
        let TimesOfDay { times, weekdays } = &self.times;
        let at = |time: &str| {
            let [hour, minute, second] =
                time_of_day(time).ok_or_else(|| ScheduleError::TimeOfDay(time.to_owned()))?;
            self.cron(&format!("{second} {minute} {hour} * * {weekdays}"))
        };
        if times.is_empty() {
            return at("00:00");
        }
        Schedule::any(times.iter().map(|time| at(time)).collect::<Result<Vec<_>, _>>()?)
    }
}

/// Returns the hour, the minute and the second of `02:30` or `02:30:15`.
fn time_of_day(text: &str) -> Option<[u8; 3]> {
    let parts: Vec<&str> = text.split(':').collect();
    let (hour, minute, second) = match parts.as_slice() {
        [hour, minute] => (*hour, *minute, "0"),
        [hour, minute, second] => (*hour, *minute, *second),
        _ => return None,
    };
    let number = |text: &str, limit: u8| {
        let is_short = matches!(text.len(), 1..=2) && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|number| is_short && *number < limit)
    };
    Some([number(hour, 24)?, number(minute, 60)?, number(second, 60)?])
}
