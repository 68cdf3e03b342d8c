//! Parameters as people write them.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// Reads a duration such as `90s` or `1h 30m`, longer than nothing.
pub(crate) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let duration = humantime::parse_duration(&text)
        .map_err(|error| de::Error::custom(format!("`{text}` is no duration such as `30s`: {error}")))?;
    if duration.is_zero() {
        Err(de::Error::custom("write how long, for example `30s`"))
    } else {
        Ok(duration)
    }
}
