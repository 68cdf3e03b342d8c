//! Arguments and values that several commands take.

use std::time::Duration;

use billing_scheduler::duration;
use chrono::{DateTime, NaiveDate, Utc};
use clap::Args;

use crate::host::identity::operator_name;

/// The output format of a command that prints one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub(crate) struct JsonArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Who makes a change.
#[derive(Clone, Debug, Args)]
pub(crate) struct AuthorArgs {
    /// Author of the change, for the audit log [default: user and host name]
    #[arg(long = "as", value_name = "NAME")]
    by: Option<String>,
}

impl AuthorArgs {
    pub(crate) fn name(&self) -> String {
        self.by.clone().unwrap_or_else(operator_name)
    }
}

/// An instant, or a duration before now.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Since {
    Time(DateTime<Utc>),
    Ago(Duration),
}

impl Since {
    pub(crate) fn before(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::Time(at) => at,
            Self::Ago(duration) => now - duration,
        }
    }
}

pub(crate) fn parse_since(text: &str) -> Result<Since, String> {
    let ago = duration::parse(text).map(Since::Ago).ok();
    ago.or_else(|| parse_time(text).ok().map(Since::Time))
        .ok_or_else(|| "use a duration such as `2d`, or a time such as `2026-11-22T15:00:00Z`".to_owned())
}

/// Parses RFC 3339, or a date for its midnight in UTC.
pub(crate) fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    let instant = DateTime::parse_from_rfc3339(text).map(|at| at.to_utc()).ok();
    let midnight = || text.parse().ok().and_then(|day: NaiveDate| day.and_hms_opt(0, 0, 0));
    instant
        .or_else(|| midnight().map(|at| at.and_utc()))
        .ok_or_else(|| "use a time such as `2026-11-22T15:00:00Z` or a date such as `2026-11-22`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_time_accepts_printed_times_and_dates() {
        let noon = "2026-11-22T12:00:00Z".parse::<DateTime<Utc>>().expect("RFC 3339");
        for text in [&*crate::format::instant(noon), "2026-11-22T13:00:00+01:00"] {
            assert_eq!(parse_time(text), Ok(noon), "{text}");
        }
        assert_eq!(parse_time("2026-11-22"), parse_time("2026-11-22T00:00:00Z"));
        for text in ["12:00:00", "2026-11-22 12:00", "2026-11-22T25:00:00Z", "UTC", ""] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
