//! Lengths of time as people write them, without the units that have no length.
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

/// The longest duration that makes sense here.
const LONGEST: Duration = Duration::from_hours(10 * 366 * 24);

/// A regular expression for whoever describes a duration to an editor. Everything that [`parse`] refuses for its form does not
/// match; what matches may still be too long, or nothing at all.
pub const PATTERN: &str = r"^\s*([0-9]+(\.[0-9]+)?\s*(nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d|weeks?|wks?|w)\s*)+$";

/// Reads `90s`, `15m`, `1h 30m`, `30d`.
///
/// # Errors
/// Why it is none, in a sentence. Months and years have no fixed length; a duration is longer than nothing and at most ten years.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err(format!("`{text}` is negative: write how long, for example `5m`"));
    }
    let units = text.split(|c: char| !c.is_alphabetic());
    if units.into_iter().any(|unit| matches!(unit, "M" | "month" | "months" | "y" | "yr" | "year" | "years"))
    {
        return Err(format!(
            "`{text}`: months and years have no fixed length: write days, for example `30d`"
        ));
    }
    let duration = humantime::parse_duration(text).map_err(|_| {
        format!(
            "`{text}` is no duration: write numbers with units, for example `90s`, `15m`, `1h 30m` or `30d`"
        )
    })?;
    if duration.is_zero() {
        return Err(format!("`{text}` is no time at all: write how long, for example `5m`"));
    }
    if duration > LONGEST {
        return Err(format!("`{text}` is longer than ten years"));
    }
    Ok(duration)
}

/// As [`parse`] reads it. Longer units than weeks are avoided: `30d`, not `1month`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let days = duration.as_secs() / 86_400;
    let rest = duration.saturating_sub(Duration::from_hours(24 * days));
    match (days, rest.is_zero()) {
        (0, _) => humantime::format_duration(rest).to_string(),
        (days, true) => format!("{days}d"),
        (days, false) => format!("{days}d {}", humantime::format_duration(rest)),
    }
}

/// Reads a duration with serde.
///
/// # Errors
/// As [`parse`] has it.
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

/// Writes a duration with serde, as [`format()`] has it.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_numbers_with_units_of_a_fixed_length() {
        for (text, seconds) in
            [("90s", 90), ("15m", 900), ("1h 30m", 5_400), (" 1h30m ", 5_400), ("30d", 2_592_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for (text, reason) in [
            ("-5m", "is negative"),
            ("0s", "no time at all"),
            ("1M", "months and years"),
            ("1 month", "months and years"),
            ("2y", "months and years"),
            ("", "is no duration"),
            ("600", "is no duration"),
            ("5 parsecs", "is no duration"),
            ("99999999999999999999s", "is no duration"),
            ("4000d", "longer than ten years"),
        ] {
            let message = parse(text).expect_err(text);
            assert!(message.contains(reason), "{text}: {message}");
        }
    }

    #[test]
    fn what_is_written_is_read_again_as_the_same() {
        for (seconds, text) in
            [(90, "1m 30s"), (86_400, "1d"), (90 * 86_400, "90d"), (400 * 86_400 + 5, "400d 5s")]
        {
            let duration = Duration::from_secs(seconds);
            assert_eq!(format(duration), text);
            assert_eq!(parse(text), Ok(duration));
        }
        assert_eq!(format(Duration::from_millis(500)), "500ms");
    }
}
