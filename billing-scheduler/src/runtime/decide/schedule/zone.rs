//! Time zones by the machine's current rules, and how far they agree with those that the program was built with.

use chrono::{DateTime, Offset, TimeDelta, TimeZone as _, Utc};
use jiff::{Timestamp, tz::TimeZone};

use super::ScheduleError;

/// The zone of that name, if the IANA database has one and this machine knows its rules.
pub(super) fn named(name: &str) -> Result<TimeZone, ScheduleError> {
    let unknown = || ScheduleError::Zone(name.to_owned());
    name.parse::<chrono_tz::Tz>().map_err(|_| unknown())?;
    TimeZone::get(name).map_err(|_| unknown())
}

pub(super) fn offset_at(zone: &TimeZone, instant: DateTime<Utc>) -> TimeDelta {
    TimeDelta::seconds(i64::from(zone.to_offset(timestamp(instant)).seconds()))
}

/// When the offset that holds at `instant` may end.
pub(super) fn next_transition(zone: &TimeZone, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
    zone.following(timestamp(instant)).next().map(|transition| utc(transition.timestamp()))
}

/// If the stretch of `offset` around `instant` repeats local times of the one before: from when on it does not.
pub(super) fn repeated_until(
    zone: &TimeZone,
    instant: DateTime<Utc>,
    offset: TimeDelta,
) -> Option<DateTime<Utc>> {
    // `preceding` is exclusive, and a stretch may begin at this very instant.
    let begin = zone.preceding(timestamp(instant + TimeDelta::seconds(1))).next()?;
    let begin = utc(begin.timestamp());
    let earlier = offset_at(zone, begin - TimeDelta::seconds(1));
    (earlier > offset).then(|| begin + (earlier - offset))
}

/// The first instant in `[from, until)` at which the machine's rules for `zone` and those built into this program differ.
pub(super) fn first_difference(
    zone: &TimeZone,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let built_in: chrono_tz::Tz = zone.iana_name()?.parse().ok()?;
    let differs = |at: DateTime<Utc>| {
        let seconds = built_in.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc();
        TimeDelta::seconds(i64::from(seconds)) != offset_at(zone, at)
    };
    // Zones keep an offset for weeks: two that never differ at this hour of a day are the same.
    let (mut same, mut at) = (from, from);
    while at < until {
        if differs(at) {
            while at - same > TimeDelta::seconds(1) {
                let middle = same + TimeDelta::seconds((at - same).num_seconds() / 2);
                if differs(middle) { at = middle } else { same = middle }
            }
            return Some(at);
        }
        same = at;
        at += TimeDelta::days(1);
    }
    None
}

fn timestamp(instant: DateTime<Utc>) -> Timestamp {
    let limits = Timestamp::MIN.as_second()..=Timestamp::MAX.as_second();
    Timestamp::from_second(instant.timestamp().clamp(*limits.start(), *limits.end()))
        .expect("the number was clamped to what a timestamp can hold")
}

fn utc(timestamp: Timestamp) -> DateTime<Utc> {
    DateTime::from_timestamp(timestamp.as_second(), 0).expect("chrono's range is wider than jiff's")
}
