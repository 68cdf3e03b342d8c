//! Durations in text, such as `90s` or `1h 30m`, without units of variable length.
//!
//! For the parameters of a job, with serde:
//!
//! ```
//! use std::time::Duration;
//!
//! #[derive(serde::Deserialize)]
//! struct Params {
//!     #[serde(with = "billing_scheduler::duration")]
//!     keep: Duration,
//! }
//!
//! let params: Params = serde_json::from_str(r#"{ "keep": "1h 30m" }"#)?;
//! assert_eq!(params.keep, Duration::from_mins(90));
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::{fmt, time::Duration};

use serde::{Deserializer, Serializer, de};

/// The longest accepted duration: ten years.
pub(crate) const LONGEST: Duration = Duration::from_hours(10 * 366 * 24);

/// A regular expression for durations, for the JSON Schema of a configuration. It rejects what [`parse`] rejects for its form; a
/// match may still be zero or too long.
pub const PATTERN: &str = r"^\s*([0-9]+(\.[0-9]+)?\s*(nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d|weeks?|wks?|w)\s*)+$";

/// Parses a duration such as `90s`, `15m`, `1h 30m` or `30d`.
///
/// # Errors
/// A message for the operator if `text` is not a valid duration. Months and years have no fixed length; a duration is greater than
/// zero and at most ten years.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err(format!("invalid duration `{text}`: it must not be negative"));
    }
    let units = text.split(|c: char| !c.is_alphabetic());
    if units.into_iter().any(|unit| matches!(unit, "M" | "month" | "months" | "y" | "yr" | "year" | "years"))
    {
        return Err(format!(
            "invalid duration `{text}`: months and years have no fixed length; use days, such as `30d`"
        ));
    }
    let duration = humantime::parse_duration(text).map_err(|_| {
        format!("invalid duration `{text}`: use numbers with units, such as `90s`, `15m`, `1h 30m` or `30d`")
    })?;
    if duration.is_zero() {
        return Err(format!("invalid duration `{text}`: it must be greater than zero"));
    }
    if duration > LONGEST {
        return Err(format!("invalid duration `{text}`: it must be at most ten years"));
    }
    Ok(duration)
}

/// Formats a duration for [`parse`]. Days are the longest unit: `30d`, not `1month`.
#[must_use]
pub fn format(duration: Duration) -> String {
    Formatted(duration).to_string()
}

/// A duration that is formatted like [`format`], without an allocation.
pub(crate) struct Formatted(pub(crate) Duration);

impl fmt::Display for Formatted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.0.as_secs() / 86_400;
        let rest = humantime::format_duration(self.0.saturating_sub(Duration::from_hours(24 * days)));
        match (days, rest.get_ref().is_zero()) {
            (0, _) => rest.fmt(f),
            (days, true) => write!(f, "{days}d"),
            (days, false) => write!(f, "{days}d {rest}"),
        }
    }
}

/// Formats a duration for people in its two largest units, rounded down: `350ms`, `4.1s`, `1h 30m`, `5d 2h`. [`parse`] accepts it
/// as well, unless it is `0s`.
#[must_use]
pub fn format_rounded(duration: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let seconds = duration.as_secs();
    match (seconds, duration.subsec_millis()) {
        (0, 0) => return "0s".to_owned(),
        (0, millis) => return format!("{millis}ms"),
        (1..60, millis) if millis >= 100 => return format!("{seconds}.{}s", millis / 100),
        _ => {}
    }
    let largest = UNITS.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(UNITS.len() - 1);
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (length, unit) in UNITS.iter().skip(largest).take(2) {
        if rest >= *length {
            parts.push(format!("{}{unit}", rest / length));
            rest %= length;
        }
    }
    parts.join(" ")
}

/// Deserializes a duration with [`parse`].
///
/// # Errors
/// The value is not a string, or not a valid duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Visitor;

    impl de::Visitor<'_> for Visitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration in quotes such as \"5m\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            parse(text).map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Visitor)
}

/// Serializes a duration with [`format()`].
///
/// # Errors
/// The error of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_duration_rejects_months() {
        for (text, seconds) in
            [("90s", 90), ("15m", 900), ("1h 30m", 5_400), (" 1h30m ", 5_400), ("30d", 2_592_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for (text, reason) in [
            ("-5m", "must not be negative"),
            ("0s", "greater than zero"),
            ("1M", "months and years"),
            ("1 month", "months and years"),
            ("2y", "months and years"),
            ("", "use numbers with units"),
            ("600", "use numbers with units"),
            ("5 parsecs", "use numbers with units"),
            ("99999999999999999999s", "use numbers with units"),
            ("4000d", "at most ten years"),
        ] {
            let message = parse(text).expect_err(text);
            assert!(message.contains(reason), "{text}: {message}");
        }
    }

    #[test]
    fn formatted_duration_parses_to_itself() {
        for (seconds, text) in
            [(90, "1m 30s"), (86_400, "1d"), (90 * 86_400, "90d"), (400 * 86_400 + 5, "400d 5s")]
        {
            let duration = Duration::from_secs(seconds);
            assert_eq!(format(duration), text);
            assert_eq!(parse(text), Ok(duration));
        }
        assert_eq!(format(Duration::from_millis(500)), "500ms");
    }

    #[test]
    fn rounded_duration_has_two_units() {
        for (millis, text) in [
            (0, "0s"),
            (350, "350ms"),
            (1_000, "1s"),
            (4_199, "4.1s"),
            (59_999, "59.9s"),
            (60_900, "1m"),
            (90_000, "1m 30s"),
            (3_600_000, "1h"),
            (3_605_000, "1h"),
            (5_430_000, "1h 30m"),
            (86_400_000, "1d"),
            (90 * 86_400_000 + 7_500_000, "90d 2h"),
        ] {
            assert_eq!(format_rounded(Duration::from_millis(millis)), text, "{millis}");
        }
    }
}
