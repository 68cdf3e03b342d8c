//! Points in time that the panel stores, and where the next hour of an instance begins.

use std::fmt;

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, Utc};

use crate::{
    hold::{Hold, Reason},
    period::Micros,
};

/// How far in the future a time may be: clocks of hosts differ.
const CLOCK_DIFFERENCE: Micros = 5 * 60 * 1_000_000;
/// By how much `last_billed_at` may be before `created_at` of the same instance: panel and database round differently.
pub(super) const NOISE: Micros = 1_000_000;
/// 2000-01-01T00:00:00Z. The panel did not exist before.
const YEAR_2000: Micros = 946_684_800_000_000;

/// What a time column of the panel holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PanelTime {
    /// The column is NULL.
    Null,
    /// Microseconds since 1970.
    At(Micros),
    /// Anything else, as stored: an infinity of PostgreSQL, or a text of SQLite that is not an instant.
    NotAnInstant(String),
}

impl PanelTime {
    /// The instant, if it is one.
    pub(super) fn at(&self) -> Option<Micros> {
        match self {
            Self::At(micros) => Some(*micros),
            Self::Null | Self::NotAnInstant(_) => None,
        }
    }

    /// Parses what SQLite stores: RFC 3339, or the same without offset (then it is UTC), seconds or time.
    pub(super) fn from_sqlite(text: Option<String>) -> Self {
        match text {
            None => Self::Null,
            Some(text) => match parse(&text) {
                Some(instant) => Self::At(instant.timestamp_micros()),
                None => Self::NotAnInstant(text),
            },
        }
    }
}

fn parse(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        return Some(instant.to_utc());
    }
    let without_offset = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"];
    let time = without_offset.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    let time = time.or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0));
    time.map(|time| time.and_utc())
}

impl fmt::Display for PanelTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("NULL"),
            Self::At(micros) => match DateTime::<Utc>::from_timestamp_micros(*micros) {
                Some(instant) => f.write_str(&instant.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
                None => write!(f, "{micros} microseconds after 1970"),
            },
            Self::NotAnInstant(text) => f.write_str(text),
        }
    }
}

/// Where the first hour of an instance begins that is not charged.
///
/// With a meter the watermark decides, or the panel where it has billed further itself; a rebuild that moves `created_at`
/// changes nothing. Without one, no hour before `created_at` is charged, whatever `last_billed_at` is.
///
/// # Errors
/// The hold of an instance with a time that is not plausible: its hours are unknown.
pub(super) fn start(
    last_billed_at: &PanelTime,
    created_at: &PanelTime,
    watermark: Option<Micros>,
    as_of: Micros,
) -> Result<Micros, Hold> {
    let soon = as_of.saturating_add(CLOCK_DIFFERENCE);
    // A clock that was set back leaves our own watermark, and the anchor that we wrote from it, in the future.
    let latest_billed = watermark.map_or(soon, |watermark| watermark.max(soon));
    let billed = plausible("last_billed_at", last_billed_at, latest_billed)?;
    let created = plausible("created_at", created_at, soon)?;
    let start = match watermark {
        Some(watermark) => Some(billed.map_or(watermark, |billed| billed.max(watermark))),
        None => match billed.zip(created) {
            Some((billed, created)) if billed.saturating_add(NOISE) <= created => Some(created),
            _ => billed.or(created),
        },
    };
    start.ok_or_else(|| Hold::new(Reason::InvalidTime, "last_billed_at and created_at are both NULL"))
}

fn plausible(column: &str, time: &PanelTime, latest: Micros) -> Result<Option<Micros>, Hold> {
    let problem = match time {
        PanelTime::Null => return Ok(None),
        PanelTime::NotAnInstant(_) => "is not an instant",
        PanelTime::At(at) if *at > latest => "is in the future",
        PanelTime::At(at) if *at < YEAR_2000 => "is before the year 2000",
        PanelTime::At(at) => return Ok(Some(*at)),
    };
    Err(Hold::new(Reason::InvalidTime, format!("{column} is `{time}`, which {problem}: correct the column")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::period::HOUR;

    const NOW: Micros = 1_767_225_600_000_000;

    fn at(hours: i64) -> PanelTime {
        PanelTime::At(NOW + hours * HOUR)
    }

    #[test]
    fn start_follows_watermark_anchor_and_creation() {
        use PanelTime::Null;
        let rows = [
            // last billed, created, watermark, start
            (Null, at(-5), None, -5),
            (at(-9), at(-5), None, -5),
            (at(-3), Null, None, -3),
            (at(-3), at(-5), None, -3),
            (at(-9), at(-5), Some(-7), -7),
            (at(-3), at(-5), Some(-7), -3),
            (Null, at(-1), Some(-7), -7),
            // Our own anchor, and a clock that was set back.
            (at(2), at(-5), Some(2), 2),
        ];
        for (billed, created, watermark, expected) in rows {
            let start = start(&billed, &created, watermark.map(|hours: i64| NOW + hours * HOUR), NOW);
            assert_eq!(start, Ok(NOW + expected * HOUR), "{billed:?} {created:?} {watermark:?}");
        }
        let just_before = NOW - 5 * HOUR - NOISE + 1;
        assert_eq!(start(&PanelTime::At(just_before), &at(-5), None, NOW), Ok(just_before));
    }

    #[test]
    fn implausible_times_name_column_and_text() {
        let text = |text: &str| PanelTime::NotAnInstant(text.to_owned());
        let soon = PanelTime::At(NOW + CLOCK_DIFFERENCE);
        assert_eq!(start(&soon, &at(-5), None, NOW), Ok(NOW + CLOCK_DIFFERENCE));
        let rows = [
            (at(1), at(-5), Some(0), "last_billed_at is `2026-01-01T01:00:00Z`, which is in the future"),
            (at(-5), at(1), Some(0), "created_at is `2026-01-01T01:00:00Z`, which is in the future"),
            (text("infinity"), at(-5), None, "last_billed_at is `infinity`, which is not an instant"),
            (at(-1), text("yesterday"), None, "created_at is `yesterday`, which is not an instant"),
            (
                PanelTime::At(0),
                at(-5),
                None,
                "last_billed_at is `1970-01-01T00:00:00Z`, which is before the year 2000",
            ),
            (PanelTime::Null, PanelTime::Null, None, "last_billed_at and created_at are both NULL"),
        ];
        for (billed, created, watermark, detail) in rows {
            let watermark = watermark.map(|hours: i64| NOW + hours * HOUR);
            let hold = start(&billed, &created, watermark, NOW).expect_err(detail);
            assert_eq!(hold.reason, Reason::InvalidTime);
            assert!(hold.detail.starts_with(detail), "{}", hold.detail);
        }
    }

    #[test]
    fn sqlite_text_is_an_instant_or_kept() {
        let rows = [
            ("2026-01-01T00:00:00.000000+00:00", true),
            ("2026-01-01 00:00:00", true),
            ("2026-01-01T01:00:00+01:00", true),
            ("2026-01-01", true),
            ("2026-01-01T00:00", true),
            // SQLite's own functions take these for times.
            ("now", false),
            ("2461041.5", false),
            ("00:00", false),
            ("", false),
            ("2026-13-01T00:00:00Z", false),
        ];
        for (text, is_instant) in rows {
            let expected =
                if is_instant { PanelTime::At(NOW) } else { PanelTime::NotAnInstant(text.to_owned()) };
            assert_eq!(PanelTime::from_sqlite(Some(text.to_owned())), expected, "{text}");
        }
    }
}
