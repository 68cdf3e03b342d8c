//! Lengths of time as people write them, without the units that have no length.

use std::time::Duration;

/// The longest duration that makes sense here.
const LONGEST: Duration = Duration::from_hours(10 * 366 * 24);

/// Reads `90s`, `15m`, `1h 30m`, `30d`.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
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
}
