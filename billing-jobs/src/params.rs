//! Durations in a job's parameters, as people write them: `75m`, `30d`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// Reads a duration such as `90s`, `75m` or `30d`; zero is refused.
pub(crate) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Visitor;

    impl de::Visitor<'_> for Visitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration such as `75m`")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            let duration = humantime::parse_duration(text)
                .map_err(|error| E::custom(format!("`{text}` is no duration such as `75m`: {error}")))?;
            if duration.is_zero() {
                Err(E::custom("a duration must be longer than nothing"))
            } else {
                Ok(duration)
            }
        }
    }

    deserializer.deserialize_str(Visitor)
}

/// Reads a factor with at most one decimal, such as `"1.5"`, in tenths.
pub(crate) fn tenths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let factor = text.parse::<rust_decimal::Decimal>().ok().map(|factor| factor * rust_decimal::Decimal::TEN);
    factor
        .filter(|tenths| tenths.fract().is_zero() && !tenths.is_sign_negative())
        .and_then(|tenths| i64::try_from(tenths).ok())
        .ok_or_else(|| {
            de::Error::custom(format!("`{text}` is no factor with at most one decimal, such as \"1.5\""))
        })
}
