//! Hours of the week in a time zone: quiet hours, and the hours in which instances may be suspended.

use jiff::{
    Span, Timestamp,
    civil::{Date, Time, Weekday},
    tz::TimeZone,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::period::Micros;

const DAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

/// A window as jobs.toml contains it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WindowParams {
    /// The days on which the window begins, such as `mon-fri` or `sat,sun`; every day by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<String>,
    /// The local time of its beginning, such as `22:00`.
    pub from: String,
    /// The local time of its end, which may be on the next day.
    pub until: String,
    /// The time zone, such as `Europe/Berlin`.
    pub timezone: String,
}

/// A part of each day, on some days of the week.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "WindowParams", into = "WindowParams")]
pub struct Window {
    params: WindowParams,
    days: Vec<Weekday>,
    from: Time,
    until: Time,
    zone: TimeZone,
}

impl TryFrom<WindowParams> for Window {
    type Error = String;

    fn try_from(params: WindowParams) -> Result<Self, String> {
        let days = params.days.as_deref().map_or(Ok(DAYS.map(|(_, day)| day).to_vec()), days)?;
        let (from, until) = (time(&params.from)?, time(&params.until)?);
        if from == until {
            return Err("`from` and `until` are the same time".to_owned());
        }
        let zone = TimeZone::get(&params.timezone)
            .map_err(|_| format!("`{}` is not a time zone such as `Europe/Berlin`", params.timezone))?;
        Ok(Self { params, days, from, until, zone })
    }
}

impl From<Window> for WindowParams {
    fn from(window: Window) -> Self {
        window.params
    }
}

impl Window {
    /// Whether `at` is within the window.
    #[must_use]
    pub fn contains(&self, at: Micros) -> bool {
        let Some(local) = self.local(at) else { return false };
        let (day, time) = (local.date(), local.time());
        if self.from < self.until {
            return self.begins_on(day) && self.from <= time && time < self.until;
        }
        let yesterday = day.yesterday().is_ok_and(|day| self.begins_on(day));
        self.begins_on(day) && self.from <= time || yesterday && time < self.until
    }

    /// The first time from `at` on that is within the window.
    #[must_use]
    pub fn next(&self, at: Micros) -> Option<Micros> {
        if self.contains(at) {
            return Some(at);
        }
        let today = self.local(at)?.date();
        (0..=8).find_map(|days| {
            let day = today.checked_add(Span::new().days(days)).ok()?;
            let begins = day.to_datetime(self.from).to_zoned(self.zone.clone()).ok()?;
            let begins = begins.timestamp().as_microsecond();
            (self.begins_on(day) && begins >= at).then_some(begins)
        })
    }

    fn local(&self, at: Micros) -> Option<jiff::Zoned> {
        Timestamp::from_microsecond(at).ok().map(|at| at.to_zoned(self.zone.clone()))
    }

    fn begins_on(&self, day: Date) -> bool {
        self.days.contains(&day.weekday())
    }
}

fn time(text: &str) -> Result<Time, String> {
    Time::strptime("%H:%M", text).map_err(|_| format!("`{text}` is not a time of day such as `22:00`"))
}

/// The days of a list of days and ranges.
fn days(text: &str) -> Result<Vec<Weekday>, String> {
    let invalid = || format!("`{text}` is not a list of days such as `mon-fri` or `sat,sun`");
    let index = |name: &str| DAYS.iter().position(|(known, _)| *known == name.trim()).ok_or_else(invalid);
    let mut days = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (index(first)?, index(last)?);
        let length = (last + DAYS.len() - first) % DAYS.len();
        days.extend((first..=first + length).map(|day| DAYS[day % DAYS.len()].1));
    }
    Ok(days)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: Option<&str>, from: &str, until: &str) -> Result<Window, String> {
        WindowParams {
            days: days.map(str::to_owned),
            from: from.to_owned(),
            until: until.to_owned(),
            timezone: "Europe/Berlin".to_owned(),
        }
        .try_into()
    }

    fn micros(at: &str) -> Micros {
        at.parse::<Timestamp>().expect("an instant").as_microsecond()
    }

    #[test]
    fn window_follows_local_time() {
        // In Berlin it is two hours later in summer, and one hour later from 2026-10-25 on. 2026-10-23 is a Friday.
        for (days, from, until, at, next) in [
            (Some("mon-fri"), "09:00", "17:00", "2026-10-23T06:59:59Z", "2026-10-23T07:00:00Z"),
            (Some("mon-fri"), "09:00", "17:00", "2026-10-23T14:59:59Z", "2026-10-23T14:59:59Z"),
            (Some("mon-fri"), "09:00", "17:00", "2026-10-23T15:00:00Z", "2026-10-26T08:00:00Z"),
            (Some("sat,sun"), "09:00", "17:00", "2026-10-23T08:00:00Z", "2026-10-24T07:00:00Z"),
            (Some("fri"), "22:00", "07:00", "2026-10-24T04:59:00Z", "2026-10-24T04:59:00Z"),
            (Some("fri"), "22:00", "07:00", "2026-10-24T05:00:00Z", "2026-10-30T21:00:00Z"),
            (None, "22:00", "07:00", "2026-10-24T12:00:00Z", "2026-10-24T20:00:00Z"),
            (Some("sat-mon"), "00:00", "23:59", "2026-10-27T12:00:00Z", "2026-10-30T23:00:00Z"),
            // The clock skips from 02:00 to 03:00 on 2026-03-29.
            (None, "02:30", "03:30", "2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z"),
        ] {
            let window = window(days, from, until).expect("a window");
            let (at, next) = (micros(at), micros(next));
            assert_eq!(window.contains(at), at == next, "{window:?} {at}");
            let found = window.next(at).expect("a time");
            assert!(found == next || found - next == 30 * 60 * 1_000_000, "{window:?} {at}: {found}");
        }
    }

    #[test]
    fn unusable_windows_are_rejected() {
        for (days, from, until) in [
            (Some("mon-foo"), "09:00", "17:00"),
            (Some(""), "09:00", "17:00"),
            (None, "9 am", "17:00"),
            (None, "09:00", "24:00"),
            (None, "09:00", "09:00"),
        ] {
            window(days, from, until).expect_err("unusable");
        }
    }
}
