//! Cron texts on a real calendar: croner matches local times, the zone's transitions say which instants those are.

use std::sync::Arc;

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use croner::{
    Cron,
    errors::CronError,
    parser::{CronParser, Seconds},
};
use jiff::{Timestamp, tz::TimeZone};

use super::ScheduleError;

/// A cron text in a time zone.
#[derive(Clone)]
pub struct CronSchedule {
    text: Arc<str>,
    cron: Arc<Cron>,
    zone: TimeZone,
    hour: Hour,
}

/// Whether the hour field names hours or leaves them open, which decides what a repeated or skipped hour means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hour {
    Fixed,
    Wildcard,
}

/// A stretch of time in which a zone keeps one offset from UTC.
struct Stretch {
    offset: TimeDelta,
    /// Local times from here up to the second value happened already, in the stretch before.
    repeated: Option<(NaiveDateTime, NaiveDateTime)>,
    /// Where the next one begins, and its offset.
    next: Option<(DateTime<Utc>, TimeDelta)>,
}

impl CronSchedule {
    pub(super) fn parse(text: &str, zone_name: &str) -> Result<Self, ScheduleError> {
        let text = text.trim();
        let refused = |reason: String| ScheduleError::Cron { text: text.to_owned(), reason };
        let parser = CronParser::builder().seconds(Seconds::Optional).build();
        let cron = parser.parse(text).map_err(|error| refused(error.to_string()))?;
        let unknown_zone = || ScheduleError::Zone(zone_name.to_owned());
        zone_name.parse::<chrono_tz::Tz>().map_err(|_| unknown_zone())?;
        let zone = TimeZone::get(zone_name).map_err(|_| unknown_zone())?;
        let schedule = Self { text: text.into(), cron: Arc::new(cron), zone, hour: hour_of(text) };
        match schedule.cron.find_next_occurrence(&DateTime::UNIX_EPOCH.naive_utc(), true) {
            Ok(_) => Ok(schedule),
            Err(CronError::TimeSearchLimitExceeded) => Err(ScheduleError::NeverComes(text.to_owned())),
            Err(error) => Err(refused(error.to_string())),
        }
    }

    pub(super) fn next_after(&self, instant: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, ScheduleError> {
        let Some(start) = DateTime::from_timestamp(instant.timestamp(), 0) else { return Ok(None) };
        let (mut from, mut inclusive) = (start, false);
        loop {
            let stretch = self.stretch(from);
            let local = self.next_local((from + stretch.offset).naive_utc(), inclusive, instant)?;
            let at = local.and_utc() - stretch.offset;
            let Some((end, next_offset)) = stretch.next.filter(|(end, _)| at >= *end) else {
                if self.hour == Hour::Fixed && stretch.repeated.is_some_and(|(a, b)| (a..b).contains(&local))
                {
                    (from, inclusive) = (at, false);
                    continue;
                }
                return Ok(Some(at));
            };
            let skipped = local < (end + next_offset).naive_utc();
            if skipped && self.hour == Hour::Fixed {
                return Ok(Some(end));
            }
            (from, inclusive) = (end, true);
        }
    }

    fn next_local(
        &self,
        from: NaiveDateTime,
        inclusive: bool,
        after: DateTime<Utc>,
    ) -> Result<NaiveDateTime, ScheduleError> {
        self.cron.find_next_occurrence(&from, inclusive).map_err(|error| ScheduleError::Search {
            text: self.text.to_string(),
            after,
            reason: error.to_string(),
        })
    }

    fn stretch(&self, instant: DateTime<Utc>) -> Stretch {
        let offset = self.offset_at(instant);
        let next = self.zone.following(timestamp(instant)).next().map(|transition| {
            let end = utc(transition.timestamp());
            (end, self.offset_at(end))
        });
        // `preceding` is exclusive, and a stretch may begin at this very instant.
        let before = self.zone.preceding(timestamp(instant + TimeDelta::seconds(1))).next();
        let repeated = before.map(|transition| utc(transition.timestamp())).and_then(|begin| {
            let earlier = self.offset_at(begin - TimeDelta::seconds(1));
            (earlier > offset).then(|| ((begin + offset).naive_utc(), (begin + earlier).naive_utc()))
        });
        Stretch { offset, repeated, next }
    }

    fn offset_at(&self, instant: DateTime<Utc>) -> TimeDelta {
        TimeDelta::seconds(i64::from(self.zone.to_offset(timestamp(instant)).seconds()))
    }
}

impl std::fmt::Debug for CronSchedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.text, self.zone.iana_name().unwrap_or("?"))
    }
}

fn hour_of(text: &str) -> Hour {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let wildcard = match fields.as_slice() {
        [nickname] => nickname.eq_ignore_ascii_case("@hourly"),
        [_, hour, _, _, _] | [_, _, hour, ..] => hour.starts_with(['*', '?']),
        _ => true,
    };
    if wildcard { Hour::Wildcard } else { Hour::Fixed }
}

fn timestamp(instant: DateTime<Utc>) -> Timestamp {
    let limits = Timestamp::MIN.as_second()..=Timestamp::MAX.as_second();
    Timestamp::from_second(instant.timestamp().clamp(*limits.start(), *limits.end()))
        .expect("the number was clamped to what a timestamp can hold")
}

fn utc(timestamp: Timestamp) -> DateTime<Utc> {
    DateTime::from_timestamp(timestamp.as_second(), 0).expect("chrono's range is wider than jiff's")
}
