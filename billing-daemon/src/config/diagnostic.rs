//! A mistake in a setting, with its location and the help for the operator.

use std::fmt;

/// One mistake. Its display has a second line for the help, the alternate display (`{:#}`) has one line:
///
/// ```text
/// jobs.toml:4:1: unknown key `scedule`
/// help: did you mean `schedule`?
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// The location of the mistake.
    pub location: Location,
    /// The mistake, in one sentence without a period.
    pub message: String,
    /// How to correct it.
    pub help: Option<String>,
}

/// The location of a setting.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The name of the file, or `environment`.
    pub source: String,
    /// The line, from 1.
    pub line: Option<usize>,
    /// The column, from 1, in characters.
    pub column: Option<usize>,
}

impl Location {
    /// Returns the environment of the process.
    #[must_use]
    pub fn environment() -> Self {
        Self::file("environment")
    }

    /// Returns a file as a whole.
    #[must_use]
    pub fn file(name: &str) -> Self {
        Self { source: name.to_owned(), line: None, column: None }
    }

    /// Returns a line of a file.
    #[must_use]
    pub fn line(file: &str, line: usize) -> Self {
        Self { line: Some(line), ..Self::file(file) }
    }
}

impl Diagnostic {
    /// Returns a diagnostic without help.
    #[must_use]
    pub fn new(location: Location, message: impl Into<String>) -> Self {
        Self { location, message: message.into(), help: None }
    }

    /// Adds the help, if there is one.
    #[must_use]
    pub fn with_help(self, help: Option<String>) -> Self {
        Self { help, ..self }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.message)?;
        let separator = if f.alternate() { "; " } else { "\n" };
        self.help.iter().try_for_each(|help| write!(f, "{separator}help: {help}"))
    }
}
