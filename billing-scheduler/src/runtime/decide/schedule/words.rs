//! Schedules in words: `at 02:30 every day, Europe/Berlin`.

use std::fmt::Write as _;

use super::{
    Rule, Schedule,
    grammar::{CronFields, Days, Weekdays},
};

const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const ORDINALS: [&str; 5] = ["first", "second", "third", "fourth", "fifth"];

impl Schedule {
    /// Describes the schedule in words, such as `at 09:00 on Monday to Friday, Europe/Berlin`.
    ///
    /// ```
    /// # use billing_scheduler::Schedule;
    /// let schedule = Schedule::cron("*/5 9-17 * * MON#2", "UTC")?;
    /// assert_eq!(schedule.words(), "every 5 minutes, in hours 9 to 17 on the second Monday of the month, UTC");
    /// # Ok::<(), billing_scheduler::ScheduleError>(())
    /// ```
    #[must_use]
    pub fn words(&self) -> String {
        match &self.0 {
            Rule::Cron(cron) => cron.fields().map_or_else(
                || cron.to_string(),
                |fields| format!("{}, {}", of_cron(&fields), cron.zone_name()),
            ),
            Rule::Any(schedules) => schedules.iter().map(Self::words).collect::<Vec<_>>().join("; "),
            Rule::Within(window) => {
                let mut words = window.schedule.words();
                // Writing to a string cannot fail.
                let _ = window.limits(&mut words);
                words
            }
            Rule::Every { .. } | Rule::At(_) => self.to_string(),
        }
    }
}

fn of_cron(fields: &CronFields) -> String {
    let (mut words, has_times) = time(fields);
    let (days, weekdays) = (days(&fields.days), weekdays(&fields.weekdays));
    match (days.is_empty(), weekdays.is_empty()) {
        (true, true) if has_times => words.push_str(" every day"),
        (true, true) => {}
        (false, false) => write!(words, " on {days} or on {weekdays}").expect("writing to a string"),
        _ => write!(words, " on {days}{weekdays}").expect("writing to a string"),
    }
    let months = values(fields.months);
    if months.len() < 12 {
        let months = ranges(&months, |month| MONTHS[month - 1].to_owned());
        write!(words, " in {months}").expect("writing to a string");
    }
    words
}

/// Describes the times of a day by their fields, such as `every 5 minutes`; a few times of day, for which it returns true, as
/// `at 09:00 and 17:30`.
fn time(fields: &CronFields) -> (String, bool) {
    let [seconds, minutes, hours] = [fields.seconds, fields.minutes, fields.hours].map(values);
    if seconds.len() * minutes.len() * hours.len() <= 4 {
        let mut times = Vec::new();
        for (hour, minute) in hours.iter().flat_map(|hour| minutes.iter().map(move |minute| (hour, minute))) {
            times.extend(seconds.iter().map(|second| match second {
                0 if seconds.len() == 1 => format!("{hour:02}:{minute:02}"),
                second => format!("{hour:02}:{minute:02}:{second:02}"),
            }));
        }
        return (format!("at {}", list(times)), true);
    }
    let mut parts = Vec::new();
    if seconds != [0] {
        parts.push(unit(&seconds, 60, "second"));
    }
    if seconds == [0] || minutes.len() < 60 {
        parts.push(unit(&minutes, 60, "minute"));
    }
    match step(&hours, 24) {
        Some(1) if step(&minutes, 60).is_some() => {}
        Some(1) => parts.push("in every hour".to_owned()),
        Some(step) => parts.push(format!("in every {} hour", ordinal(step))),
        None => parts.push(format!("in hours {}", ranges(&hours, |hour| hour.to_string()))),
    }
    (parts.join(", "), false)
}

fn unit(values: &[usize], all: usize, noun: &str) -> String {
    match (step(values, all), values) {
        (Some(1), _) => format!("every {noun}"),
        (Some(step), _) => format!("every {step} {noun}s"),
        (None, [value]) => format!("at {noun} {value}"),
        (None, _) => format!("at {noun}s {}", ranges(values, |value| value.to_string())),
    }
}

/// Describes days of the month; empty for every day.
fn days(days: &Days) -> String {
    if days.open {
        return String::new();
    }
    let listed = values(days.listed);
    let mut parts = Vec::new();
    if !listed.is_empty() {
        parts.push(format!("the {}", ranges(&listed, ordinal)));
    }
    parts.extend(
        values(days.nearest).iter().map(|day| format!("the weekday nearest to the {}", ordinal(*day))),
    );
    parts.extend(days.last.then(|| "the last day".to_owned()));
    parts.extend(days.last_workday.then(|| "the last weekday".to_owned()));
    format!("{} of the month", list(parts))
}

/// Describes days of the week; empty for every day.
fn weekdays(weekdays: &Weekdays) -> String {
    if weekdays.open {
        return String::new();
    }
    // A week begins on Monday.
    let of = |mask: u64| values((mask & !1) | ((mask & 1) << 7));
    let name = |day: usize| WEEKDAYS[day - 1].to_owned();
    let listed = of(weekdays.listed);
    let mut parts = Vec::new();
    if !listed.is_empty() {
        parts.push(ranges(&listed, name));
    }
    let nth = ORDINALS
        .iter()
        .zip(weekdays.nth)
        .flat_map(|(nth, mask)| of(mask).into_iter().map(move |day| (*nth, day)));
    let last = of(weekdays.last).into_iter().map(|day| ("last", day));
    parts.extend(nth.chain(last).map(|(which, day)| format!("the {which} {} of the month", name(day))));
    list(parts)
}

/// Returns the bits that are set.
fn values(mask: u64) -> Vec<usize> {
    (0..64).filter(|bit| mask >> bit & 1 == 1).collect()
}

/// Returns the step of values that cover the range from 0 to `all` evenly.
fn step(values: &[usize], all: usize) -> Option<usize> {
    let [0, step, ..] = *values else { return None };
    values.iter().copied().eq((0..all).step_by(step)).then_some(step)
}

/// Lists values, and three or more in a row as a range.
fn ranges(values: &[usize], name: impl Fn(usize) -> String) -> String {
    let runs = values.chunk_by(|a, b| *b == a + 1);
    let parts = runs.flat_map(|run| match run {
        [first, _, .., last] => vec![format!("{} to {}", name(*first), name(*last))],
        few => few.iter().map(|value| name(*value)).collect(),
    });
    list(parts.collect())
}

fn list(mut parts: Vec<String>) -> String {
    match parts.pop() {
        Some(last) if !parts.is_empty() => format!("{} and {last}", parts.join(", ")),
        last => last.unwrap_or_default(),
    }
}

fn ordinal(number: usize) -> String {
    let suffix = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{suffix}")
}
