//! The one text form of an instant, an age and a count, for everything that the daemon prints, logs and answers.

use std::time::Duration;

use billing_scheduler::duration;
use chrono::{DateTime, SecondsFormat, Utc};

/// Returns an instant as RFC 3339 in UTC with whole seconds, which every command accepts as well: `2026-11-22T15:00:00Z`.
pub(crate) fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Returns an age in whole seconds: `4s ago`, `1h 30m ago`.
pub(crate) fn ago(age: Duration) -> String {
    format!("{} ago", age_of(age))
}

/// Returns a duration of which fractions of a second do not matter: `4s`, `1h 30m`.
pub(crate) fn age_of(age: Duration) -> String {
    duration::format_rounded(Duration::from_secs(age.as_secs()))
}

/// Returns a number with its noun: `1 instance`, `2 instances`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatted_values_have_one_form() {
        let at = DateTime::from_timestamp_millis(1_800_000_000_900).expect("a time");
        assert_eq!(instant(at), "2027-01-15T08:00:00Z");
        assert_eq!(ago(Duration::from_millis(4_900)), "4s ago");
        assert_eq!(ago(Duration::from_mins(90)), "1h 30m ago");
        assert_eq!([0, 1, 2].map(|number| count(number, "hour")), ["0 hours", "1 hour", "2 hours"]);
    }
}
