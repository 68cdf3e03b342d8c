//! Errors of cron texts: the field, the value, its position, and the correction.

use std::{fmt, ops::Range};

/// A field of a cron text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CronField {
    /// 0 to 59; the first of six fields.
    Second,
    /// 0 to 59.
    Minute,
    /// 0 to 23.
    Hour,
    /// 1 to 31.
    Day,
    /// 1 to 12, or JAN to DEC.
    Month,
    /// 0 to 7, or SUN to SAT; Sunday is 0 and 7.
    Weekday,
}

/// Why a cron text is invalid, and how to correct it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CronError {
    /// The text as written.
    pub text: String,
    /// The bytes of `text` that are wrong.
    pub at: Range<usize>,
    /// The field they are in; `None` if the text as a whole is wrong.
    pub field: Option<CronField>,
    /// The problem, without the text: "minute `61` is not within 0-59".
    pub problem: String,
    /// The correction: "use a number from 0 to 59".
    pub help: String,
}

impl CronError {
    /// Returns the error for the text before it was trimmed.
    pub(super) fn within(self, whole: &str) -> Self {
        let before = whole.len() - whole.trim_start().len();
        let at = self.at.start + before..self.at.end + before;
        Self { text: whole.to_owned(), at, ..self }
    }
}

/// The number of characters of a text that a message contains.
const SHOWN: usize = 60;

const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

impl CronField {
    /// Returns the lowest and the highest value.
    #[must_use]
    pub fn bounds(self) -> (u8, u8) {
        match self {
            Self::Second | Self::Minute => (0, 59),
            Self::Hour => (0, 23),
            Self::Day => (1, 31),
            Self::Month => (1, 12),
            Self::Weekday => (0, 7),
        }
    }

    /// Returns the highest value that is not an alias.
    pub(super) fn last(self) -> u8 {
        if self == Self::Weekday { 6 } else { self.bounds().1 }
    }

    /// Returns the number of different values.
    pub(super) fn values(self) -> u8 {
        self.last() - self.bounds().0 + 1
    }

    /// Returns the range of all values, as text.
    pub(super) fn all(self) -> String {
        format!("{}-{}", self.bounds().0, self.last())
    }

    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Month => &MONTHS,
            Self::Weekday => &WEEKDAYS,
            Self::Second | Self::Minute | Self::Hour | Self::Day => &[],
        }
    }

    /// Returns the value of a name, in any case.
    pub(super) fn named(self, name: &str) -> Option<u8> {
        let place = self.names().iter().position(|known| known.eq_ignore_ascii_case(name))?;
        u8::try_from(place).ok().map(|place| place + u8::from(self == Self::Month))
    }

    /// Formats `value` like `like`: as a name or as a number.
    pub(super) fn shown(self, value: u8, like: &str) -> String {
        let place = usize::from(value) - usize::from(self == Self::Month);
        match self.named(like) {
            Some(_) => self.names()[place % self.names().len()].to_owned(),
            None => value.to_string(),
        }
    }

    /// Returns the valid values, as the help of an error.
    pub(super) fn expected(self) -> String {
        let (least, most) = self.bounds();
        match self.names() {
            [head, .., tail] => {
                format!("use a number from {least} to {most} or a name from {head} to {tail}")
            }
            _ => format!("use a number from {least} to {most}"),
        }
    }
}

impl fmt::Display for CronField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day of month",
            Self::Month => "month",
            Self::Weekday => "day of week",
        })
    }
}

impl fmt::Display for CronError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid cron text `{}`: {}", shown(&self.text), self.problem)
    }
}

impl std::error::Error for CronError {}

/// Returns the part of a text that a message contains, with control characters escaped.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).flat_map(escaped).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let (escaped, plain) = if c.is_control() { (Some(c.escape_default()), None) } else { (None, Some(c)) };
    escaped.into_iter().flatten().chain(plain)
}

/// A [`CronError`] without its text.
#[derive(Debug)]
pub(super) struct Refused {
    at: Range<usize>,
    field: Option<CronField>,
    problem: String,
    help: String,
}

impl Refused {
    pub(super) fn new(at: Range<usize>, problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self { at, field: None, problem: problem.into(), help: help.into() }
    }

    /// Adds `value` of `field` to the error.
    pub(super) fn of(self, field: CronField, value: &str) -> Self {
        let problem = format!("{field} `{}` {}", shown(value), self.problem);
        Self { field: Some(field), problem, ..self }
    }

    pub(super) fn in_text(self, text: &str) -> CronError {
        let Self { at, field, problem, help } = self;
        CronError { text: text.to_owned(), at, field, problem, help }
    }
}

/// A part of a text, with its position in bytes.
#[derive(Clone, Debug)]
pub(super) struct Word<'t> {
    pub(super) text: &'t str,
    pub(super) at: usize,
}

impl<'t> Word<'t> {
    /// Splits `text` at white space.
    pub(super) fn all(text: &'t str) -> Vec<Self> {
        let whole = Self { text, at: 0 };
        whole.split(char::is_whitespace).into_iter().filter(|word| !word.text.is_empty()).collect()
    }

    pub(super) fn split(&self, is_separator: fn(char) -> bool) -> Vec<Self> {
        let mut at = self.at;
        let mut words = Vec::new();
        for text in self.text.split(is_separator) {
            words.push(Self { text, at });
            at += text.len();
            at += self.text[at - self.at..].chars().next().map_or(0, char::len_utf8);
        }
        words
    }

    /// Returns the first `length` bytes.
    pub(super) fn until(&self, length: usize) -> Self {
        Self { text: &self.text[..length], at: self.at }
    }

    pub(super) fn end(&self) -> usize {
        self.at + self.text.len()
    }

    pub(super) fn refused(
        &self,
        field: CronField,
        problem: impl Into<String>,
        help: impl Into<String>,
    ) -> Refused {
        Refused::new(self.at..self.end(), problem, help).of(field, self.text)
    }
}
