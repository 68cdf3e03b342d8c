//! Time zones by the host's current rules, and the differences to the rules that the program was built with.

use chrono::{DateTime, Offset, TimeDelta, TimeZone as _, Utc};
use jiff::{Timestamp, tz::TimeZone};

use super::ScheduleError;

/// Returns the zone of that name, if the IANA database has it and this host has its rules.
pub(super) fn named(name: &str) -> Result<TimeZone, ScheduleError> {
    let unknown = || ScheduleError::Zone(name.to_owned());
    name.parse::<chrono_tz::Tz>().map_err(|_| unknown())?;
    TimeZone::get(name).map_err(|_| unknown())
}

pub(super) fn offset_at(zone: &TimeZone, instant: DateTime<Utc>) -> TimeDelta {
    TimeDelta::seconds(i64::from(zone.to_offset(timestamp(instant)).seconds()))
}

/// Returns when the offset at `instant` may end.
pub(super) fn next_transition(zone: &TimeZone, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
    zone.following(timestamp(instant)).next().map(|transition| utc(transition.timestamp()))
}

/// Returns until when the period of `offset` around `instant` repeats local times of the period before it, if it does.
pub(super) fn repeated_until(
    zone: &TimeZone,
    instant: DateTime<Utc>,
    offset: TimeDelta,
) -> Option<DateTime<Utc>> {
    // `preceding` is exclusive, and a period may begin at this instant.
    let begin = zone.preceding(timestamp(instant + TimeDelta::seconds(1))).next()?;
    let begin = utc(begin.timestamp());
    let earlier = offset_at(zone, begin - TimeDelta::seconds(1));
    (earlier > offset).then(|| begin + (earlier - offset))
}

/// Returns the first instant in `[from, until)` at which the host's rules for `zone` differ from those built into this program.
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
    // Zones keep an offset for weeks, so one check per day finds every difference.
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
