//! What a schedule would do that an operator types: its times, and how they differ from those of the schedule in force.

use billing_scheduler::{IntoSchedule as _, Schedule, ScheduleError, daily, every};
use chrono::{DateTime, TimeDelta, Utc};
use jiff::{Timestamp, tz::TimeZone};

use crate::config::parse_schedule;

/// How many times of the schedule in force are compared.
const COMPARED: usize = 500;

/// Parses what jobs.toml accepts and what pages and commands print: `{ every = "1h" }`, `every 1h, 5m after`, `daily at 02:30, 14:00`,
/// `at 2026-12-01T00:00:00Z`, or a cron text, with or without `in ZONE`. Returns the time zone, too.
pub(super) fn parse(text: &str, zone: &str, now: DateTime<Utc>) -> Result<(Schedule, String), String> {
    let text = text.trim();
    let (text, zone) = if text.starts_with(['{', '[']) {
        (text, zone)
    } else {
        text.rsplit_once(" in ").map_or((text, zone), |(text, zone)| (text, zone.trim()))
    };
    // A zone that nothing but the local times use is checked as well.
    Schedule::cron("@daily", zone).map_err(in_words)?;
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let schedule = match word {
        _ if text.starts_with(['{', '[']) => {
            return parse_value(text, now).map(|parsed| (parsed, zone.to_owned()));
        }
        "every" => match rest.strip_suffix(" after").and_then(|rest| rest.split_once(", ")) {
            Some((period, offset)) => every(period).offset(offset).into_schedule(),
            None => every(rest).into_schedule(),
        },
        "daily" => {
            let times = rest.strip_prefix("at ").unwrap_or(rest).split(',').map(str::trim);
            let schedule = daily().timezone(zone);
            times.filter(|time| !time.is_empty()).fold(schedule, billing_scheduler::Daily::at).into_schedule()
        }
        "at" => {
            let at =
                rest.parse().map_err(|_| format!("`{rest}` is not a time such as 2026-12-01T00:00:00Z"))?;
            Schedule::at(at)
        }
        _ => Schedule::cron(text, zone),
    };
    schedule.map(|schedule| (schedule, zone.to_owned())).map_err(in_words)
}

fn parse_value(text: &str, now: DateTime<Utc>) -> Result<Schedule, String> {
    parse_schedule(text, now).map_err(|problems| {
        let problems = problems.into_iter().map(|problem| match problem.help {
            Some(help) => format!("{}, {help}", problem.message),
            None => problem.message,
        });
        problems.collect::<Vec<_>>().join("; ")
    })
}

/// The error and, for a cron text, how to correct it.
pub(super) fn in_words(error: ScheduleError) -> String {
    match error {
        ScheduleError::Cron(error) => format!("{error}, {}", error.help),
        error => error.to_string(),
    }
}

/// The first `count` times after an instant.
pub(super) fn times(
    schedule: &Schedule,
    after: DateTime<Utc>,
    count: usize,
) -> Result<Vec<DateTime<Utc>>, ScheduleError> {
    let mut times = Vec::new();
    let mut last = after;
    while times.len() < count {
        let Some(next) = schedule.next_after(last)? else { break };
        times.push(next);
        last = next;
    }
    Ok(times)
}

/// How a time of a new schedule differs from the schedule in force.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Kept,
    Added,
    /// It replaces this one.
    Moved(DateTime<Utc>),
}

/// Two schedules, compared from an instant on.
pub(super) struct Comparison<'a> {
    pub(super) in_force: &'a Schedule,
    pub(super) new: &'a Schedule,
    pub(super) from: DateTime<Utc>,
}

impl Comparison<'_> {
    /// How this time of the new schedule differs. It is a moved one if it and a lost time are the nearest of each other.
    pub(super) fn of(&self, at: DateTime<Utc>) -> Result<Change, ScheduleError> {
        if is_due(self.in_force, at)? {
            return Ok(Change::Kept);
        }
        let before = nearest(self.in_force, at)?.filter(|before| *before > self.from);
        Ok(match before {
            Some(before) if self.moved_to(before)? == Some(at) => Change::Moved(before),
            _ => Change::Added,
        })
    }

    /// The times of the schedule in force until `until` that the new one neither has nor moves, of the first few hundred.
    pub(super) fn lost(&self, until: DateTime<Utc>) -> Result<Vec<DateTime<Utc>>, ScheduleError> {
        let mut lost = Vec::new();
        for at in times(self.in_force, self.from, COMPARED)? {
            if at > until {
                break;
            }
            let is_lost = !is_due(self.new, at)?
                && match self.moved_to(at)? {
                    Some(moved) => self.of(moved)? != Change::Moved(at),
                    None => true,
                };
            if is_lost {
                lost.push(at);
            }
        }
        Ok(lost)
    }

    /// The time of the new schedule that may replace this one; none if the new schedule has it.
    fn moved_to(&self, at: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, ScheduleError> {
        if is_due(self.new, at)? { Ok(None) } else { nearest(self.new, at) }
    }
}

fn is_due(schedule: &Schedule, at: DateTime<Utc>) -> Result<bool, ScheduleError> {
    Ok(schedule.next_after(at - TimeDelta::seconds(1))? == Some(at))
}

/// The time next to `at`, which the schedule does not have: the earlier one of two that are equally near.
fn nearest(schedule: &Schedule, at: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, ScheduleError> {
    let (earlier, later) = (schedule.last_until(at)?, schedule.next_after(at)?);
    Ok([earlier, later].into_iter().flatten().min_by_key(|near| (*near - at).abs()))
}

fn timestamp(at: DateTime<Utc>) -> Timestamp {
    Timestamp::from_second(at.timestamp()).unwrap_or_default()
}

/// The local time of an instant, with its offset.
pub(super) fn local(zone: &TimeZone, at: DateTime<Utc>) -> String {
    timestamp(at).to_zoned(zone.clone()).strftime("%a %Y-%m-%d %H:%M:%S %:z").to_string()
}

/// What a change of the clock means for the local time of `at`.
pub(super) fn clock_change(zone: &TimeZone, at: DateTime<Utc>) -> Option<&'static str> {
    let at = timestamp(at);
    let offset = zone.to_offset(at);
    let before = zone.preceding(at + jiff::SignedDuration::from_secs(1)).next();
    if before.is_some_and(|change| change.timestamp() == at) {
        return Some("the first instant after the clock is changed");
    }
    let is_repeated = zone.to_ambiguous_timestamp(offset.to_datetime(at)).is_ambiguous();
    is_repeated.then_some("a local time that occurs twice")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instant(text: &str) -> DateTime<Utc> {
        format!("2026-11-{text}:00Z").parse().expect("a time")
    }

    fn schedule(text: &str) -> Schedule {
        parse(text, "UTC", instant("22T00:00")).expect("valid").0
    }

    #[test]
    fn typed_schedules_are_read() {
        for (text, words) in [
            ("30 2 * * *", "at 02:30 every day, UTC"),
            (" 30 2 * * * in Europe/Berlin ", "at 02:30 every day, Europe/Berlin"),
            ("every 10s", "every 10s"),
            ("every 1h, 5m after", "every 1h, 5m after"),
            ("daily at 02:30 in Europe/Berlin", "at 02:30 every day, Europe/Berlin"),
            ("daily at 02:30, 14:00", "at 02:30 every day, UTC; at 14:00 every day, UTC"),
            ("daily", "at 00:00 every day, UTC"),
            ("at 2026-12-01T00:00:00Z", "at 2026-12-01T00:00:00Z"),
            ("{ every = \"1h\", offset = \"5m\" }", "every 1h, 5m after"),
            ("[{ every = '1h' }, { cron = '@daily' }]", "every 1h; at 00:00 every day, UTC"),
        ] {
            assert_eq!(schedule(text).words(), words, "{text}");
        }
        for (text, problem) in [
            ("every x", "invalid duration `x`"),
            ("every", "invalid duration"),
            ("daily at 25:00", "invalid time of day `25:00`"),
            ("at noon", "`noon` is not a time"),
            ("{ evry = '1h' }", "unknown key `evry`, did you mean `every`?"),
            ("{ every = '1h' ", "unclosed"),
            ("every 1h in Mars", "unknown time zone `Mars`"),
            ("30 2", "fields"),
        ] {
            let error = parse(text, "UTC", instant("22T00:00")).expect_err("invalid");
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn changes_are_kept_added_moved_lost() {
        let from = instant("22T00:15");
        for (in_force, new, changes, lost) in [
            ("every 1h", "every 1h", "kept kept kept", ""),
            ("every 1h", "every 30m", "added kept added", ""),
            ("every 1h", "every 2h", "kept kept kept", "01:00 03:00 05:00"),
            ("30 2 * * *", "0 3 * * *", "02:30 02:30 02:30", ""),
            // Of two times that are moved together one is lost.
            ("0 2,3 * * *", "30 2 * * *", "02:00 02:00 02:00", "03:00 03:00"),
            // A time that has passed is not moved: the job would run again.
            ("10 0 * * *", "20 0 * * *", "added 00:10 00:10", ""),
            ("every 10s", "0 3 * * *", "kept kept kept", "many"),
        ] {
            let (in_force, new) = (&schedule(in_force), &schedule(new));
            let comparison = Comparison { in_force, new, from };
            let found = times(new, from, 3).expect("times");
            let shown: Vec<_> = found.iter().map(|at| comparison.of(*at).expect("a change")).collect();
            let shown = shown.into_iter().map(|change| match change {
                Change::Kept => "kept".to_owned(),
                Change::Added => "added".to_owned(),
                Change::Moved(before) => before.format("%H:%M").to_string(),
            });
            assert_eq!(shown.collect::<Vec<_>>().join(" "), changes, "{in_force} to {new}");
            let gone = comparison.lost(found[2]).expect("times");
            let gone: Vec<_> = gone.iter().map(|at| at.format("%H:%M").to_string()).collect();
            if lost == "many" {
                assert_eq!(gone.len(), COMPARED, "{in_force} to {new}");
            } else {
                assert_eq!(gone.join(" "), lost, "{in_force} to {new}");
            }
        }
    }
}
