//! The settings of the log: which events it contains, and their format.

use std::{fmt, str::FromStr};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use super::did_you_mean;

/// The format of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// `[2025-01-15T10:30:00.000Z] [INFO] message`: the message alone.
    #[default]
    Text,
    /// One JSON object per line, with every field of the event and of its spans.
    Json,
}

/// Which events are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// Returns the directives of `tracing`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a [`LogFilter`].
#[derive(Debug, thiserror::Error)]
pub enum LogFilterError {
    /// A level that does not exist.
    #[error("unknown log level `{word}`, {help}")]
    Level {
        /// The word in the text.
        word: String,
        /// What to write instead.
        help: String,
    },
    /// Not of the form `target=level`.
    #[error(
        "cannot read the log filter `{0}`: write a level, or target=level pairs such as billing_daemon=debug,sqlx=warn"
    )]
    Directive(String),
}

pub(crate) const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

impl FromStr for LogFilter {
    type Err = LogFilterError;

    /// Reads a level (`error`, `warn`, `info`, `debug` or `trace`, in any case), or directives of `tracing` such as
    /// `billing_daemon=debug,sqlx=warn`; targets that these do not name stay at `info`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let (directives, words): (Vec<&str>, Vec<&str>) = parts.partition(|part| part.contains(['=', '[']));
        let mut level = "info".to_owned();
        for word in words {
            level = word.to_ascii_lowercase();
            if !LEVELS.contains(&level.as_str()) {
                let help = did_you_mean(word, LEVELS)
                    .unwrap_or_else(|| "use error, warn, info, debug or trace".to_owned());
                return Err(LogFilterError::Level { word: word.to_owned(), help });
            }
        }
        // The database layer logs every statement and the ticker its start: they are logged only if the filter names them.
        let others = if level == "error" { "error" } else { "warn" };
        let defaults = format!("{level},sqlx={others},sea_orm={others},tokio_cron_scheduler={others}");
        let filter = [vec![defaults.as_str()], directives].concat().join(",");
        EnvFilter::try_new(&filter).map_err(|_| LogFilterError::Directive(text.to_owned()))?;
        Ok(Self(filter))
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        "info".parse().expect("`info` is a level")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_level_is_rejected() {
        for (text, reason) in [
            ("verbose", "unknown log level `verbose`, use error, warn, info, debug or trace"),
            ("inof", "unknown log level `inof`, did you mean `info`?"),
            ("sqlx=debug,warning", "unknown log level `warning`, use error, warn, info, debug or trace"),
            (
                "sqlx=loud",
                "cannot read the log filter `sqlx=loud`: write a level, or target=level pairs such as billing_daemon=debug,sqlx=warn",
            ),
        ] {
            assert_eq!(text.parse::<LogFilter>().expect_err(text).to_string(), reason);
        }
    }
}
