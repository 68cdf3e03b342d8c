//! What is wrong with a setting, and where it stands, as a person reads it.

use std::fmt;

/// One thing that is wrong, in one line: `jobs.toml:4:1: unknown key `scedule`, did you mean `schedule`?`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// Where it is.
    pub place: Place,
    /// What it is.
    pub message: String,
    /// What to write instead, as the end of the sentence.
    pub hint: Option<String>,
}

/// Where a setting stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The name of the file, or `environment`.
    pub source: String,
    /// The line, from 1.
    pub line: Option<usize>,
    /// The column, from 1, in characters.
    pub column: Option<usize>,
}

impl Place {
    /// The environment of the process.
    #[must_use]
    pub fn environment() -> Self {
        Self::file("environment")
    }

    /// A file as a whole.
    #[must_use]
    pub fn file(name: &str) -> Self {
        Self { source: name.to_owned(), line: None, column: None }
    }

    /// A line of a file.
    #[must_use]
    pub fn line(file: &str, line: usize) -> Self {
        Self { line: Some(line), ..Self::file(file) }
    }
}

impl Diagnostic {
    /// A diagnostic without a hint.
    #[must_use]
    pub fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into(), hint: None }
    }

    /// The same with a hint, if there is one.
    #[must_use]
    pub fn hint(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }
}

impl fmt::Display for Place {
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
        write!(f, "{}: {}", self.place, self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, ", {hint}"))
    }
}
