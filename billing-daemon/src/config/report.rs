//! Reads a parsed TOML tree key by key, so that everything wrong in it is told at once, each with its place.

use std::{
    cell::RefCell,
    ops::{Range, RangeInclusive},
    time::Duration,
};

use billing_kinds::Secret;
use billing_scheduler::duration;
use chrono::{DateTime, Utc};
use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Diagnostic, Place, position::position, suggest::one_of};

/// A file, and what is wrong with it so far.
pub(super) struct Report<'t> {
    file: &'t str,
    text: &'t str,
    now: DateTime<Utc>,
    found: RefCell<Vec<Diagnostic>>,
    warnings: RefCell<Vec<Diagnostic>>,
}

impl<'t> Report<'t> {
    /// On `text`, which is read at `now`.
    pub(super) fn new(file: &'t str, text: &'t str, now: DateTime<Utc>) -> Self {
        Self { file, text, now, found: RefCell::default(), warnings: RefCell::default() }
    }

    /// When the file is read.
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.now
    }

    pub(super) fn push(&self, diagnostic: Diagnostic) {
        self.found.borrow_mut().push(diagnostic);
    }

    pub(super) fn at(&self, span: &Range<usize>, message: impl Into<String>) {
        self.push(Diagnostic::new(self.place(span), message));
    }

    pub(super) fn with_hint(&self, span: &Range<usize>, message: impl Into<String>, hint: Option<String>) {
        self.push(Diagnostic::new(self.place(span), message).hint(hint));
    }

    /// Reports what works, but hardly as intended.
    pub(super) fn warn(&self, span: &Range<usize>, message: impl Into<String>, help: Option<String>) {
        self.warnings.borrow_mut().push(Diagnostic::new(self.place(span), message).hint(help));
    }

    /// How many warnings there are.
    pub(super) fn count_warnings(&self) -> usize {
        self.warnings.borrow().len()
    }

    /// Forgets all but the first `count` warnings: the rest is about what is not used.
    pub(super) fn forget_warnings(&self, count: usize) {
        self.warnings.borrow_mut().truncate(count);
    }

    /// The warnings, in the order of the file.
    pub(super) fn warnings(&self) -> Vec<Diagnostic> {
        let mut warnings = self.warnings.take();
        warnings.sort();
        warnings
    }

    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        let (line, column) = position(self.text, span.start);
        Place { source: self.file.to_owned(), line: Some(line), column: Some(column) }
    }

    /// The place of `part` of the string that is `text` and has the span `span`: its begin if it is written with escapes.
    pub(super) fn part(&self, span: &Range<usize>, text: &str, part: &Range<usize>) -> Range<usize> {
        let written = self.text.get(span.clone()).and_then(|written| written.find(text));
        written.map_or_else(|| span.clone(), |at| span.start + at + part.start..span.end)
    }

    /// A value that somebody else read, or else what is wrong with it.
    pub(super) fn accept<T>(&self, result: Result<T, Diagnostic>) -> Option<T> {
        result.map_err(|problem| self.push(problem)).ok()
    }

    /// Everything found, in the order of the file.
    pub(super) fn finish(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        found.sort();
        found
    }
}

/// A table whose keys are known.
pub(super) struct Section<'r, 't> {
    report: &'r Report<'t>,
    entries: &'r DeTable<'t>,
    span: Range<usize>,
}

impl<'r, 't> Section<'r, 't> {
    /// The table, whose keys other than `known` are reported.
    pub(super) fn new(
        report: &'r Report<'t>,
        entries: &'r DeTable<'t>,
        span: Range<usize>,
        known: &[&str],
    ) -> Self {
        for key in entries.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let hint = one_of(key.get_ref(), known.iter().copied());
            report.with_hint(&key.span(), format!("unknown key `{}`", key.get_ref()), Some(hint));
        }
        Self { report, entries, span }
    }

    /// The table that `value` should be.
    pub(super) fn of(
        report: &'r Report<'t>,
        name: &str,
        value: &'r Spanned<DeValue<'t>>,
        expected: &str,
        known: &[&str],
    ) -> Option<Self> {
        let Some(entries) = value.get_ref().as_table() else {
            report.at(&value.span(), mismatch(name, expected, value.get_ref()));
            return None;
        };
        Some(Self::new(report, entries, value.span(), known))
    }

    pub(super) fn report(&self) -> &'r Report<'t> {
        self.report
    }

    /// Where the table begins.
    pub(super) fn span(&self) -> &Range<usize> {
        &self.span
    }

    pub(super) fn value(&self, key: &str) -> Option<&'r Spanned<DeValue<'t>>> {
        self.entries.get(key)
    }

    /// Where `key` stands, if it does.
    pub(super) fn key(&self, key: &str) -> Option<Range<usize>> {
        self.entries.get_key_value(key).map(|(key, _)| key.span())
    }

    /// Reports those of `keys` that are missing.
    pub(super) fn require(&self, keys: &[&str]) {
        for key in keys.iter().filter(|key| self.value(key).is_none()) {
            self.report.at(&self.span, format!("missing key `{key}`"));
        }
    }

    pub(super) fn table(&self, key: &str, expected: &str, known: &[&str]) -> Option<Self> {
        Self::of(self.report, key, self.value(key)?, expected, known)
    }

    pub(super) fn string(&self, key: &str) -> Option<Spanned<&'r str>> {
        self.typed(key, "a string", DeValue::as_str)
    }

    pub(super) fn strings(&self, key: &str) -> Option<Vec<String>> {
        let texts = |value: &'r DeValue<'t>| {
            let values = value.as_array()?.iter();
            values.map(|value| value.get_ref().as_str().map(str::to_owned)).collect()
        };
        self.typed(key, "a list of strings", texts).map(Spanned::into_inner)
    }

    pub(super) fn numbers(&self, key: &str) -> Option<Vec<u32>> {
        let numbers = |value: &'r DeValue<'t>| {
            let number = |value: &'r Spanned<DeValue<'t>>| {
                let number = value.get_ref().as_integer()?;
                u32::from_str_radix(number.as_str(), number.radix()).ok()
            };
            value.as_array()?.iter().map(number).collect()
        };
        self.typed(key, "a list of whole numbers", numbers).map(Spanned::into_inner)
    }

    /// Text, or where to read it.
    pub(super) fn secret(&self, key: &str) -> Option<Secret> {
        let value = self.value(key)?;
        let expected = "text, { env = \"NAME\" } or { file = \"/path\" }";
        if let DeValue::String(text) = value.get_ref() {
            return Some(Secret::Text(text.to_string()));
        }
        let source = Self::of(self.report, key, value, expected, &["env", "file"])?;
        match (source.value("env"), source.value("file")) {
            (Some(_), None) => source.string("env").map(|name| Secret::Env(name.into_inner().to_owned())),
            (None, Some(_)) => source.string("file").map(|path| Secret::File(path.into_inner().into())),
            _ => {
                self.report.at(&value.span(), format!("`{key}` must be {expected}"));
                None
            }
        }
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        self.typed(key, "true or false", DeValue::as_bool).map(Spanned::into_inner)
    }

    /// A whole number from 1.
    pub(super) fn count(&self, key: &str) -> Option<u32> {
        self.number(key, 1..=u32::MAX).map(Spanned::into_inner)
    }

    /// A whole number within `limits`.
    pub(super) fn number(&self, key: &str, limits: RangeInclusive<u32>) -> Option<Spanned<u32>> {
        let number = self.typed(key, "a whole number", DeValue::as_integer)?;
        let read = u32::from_str_radix(number.get_ref().as_str(), number.get_ref().radix());
        let read = read.ok().filter(|read| limits.contains(read));
        if read.is_none() {
            let (least, most) = (limits.start(), limits.end());
            let message =
                format!("`{key}` must be at least {least} and at most {most}, not {}", number.get_ref());
            self.report.at(&number.span(), message);
        }
        read.map(|read| Spanned::new(number.span(), read))
    }

    /// An instant in quotes or as TOML writes it, with its offset from UTC.
    pub(super) fn instant(&self, key: &str) -> Option<Spanned<DateTime<Utc>>> {
        let expected = "a time with its offset from UTC such as \"2026-12-01T00:00:00Z\"";
        let text = self.typed(key, expected, |value| match value {
            DeValue::String(text) => Some(text.trim().to_owned()),
            DeValue::Datetime(time) => Some(time.to_string()),
            _ => None,
        })?;
        let span = text.span();
        let instant = DateTime::parse_from_rfc3339(text.get_ref()).ok();
        if instant.is_none() {
            self.report.at(&span, format!("`{key}` must be {expected}, not {}", text.get_ref()));
        }
        instant.map(|instant| Spanned::new(span, instant.to_utc()))
    }

    pub(super) fn duration(&self, key: &str) -> Option<Spanned<Duration>> {
        let text = self.typed(key, "a duration in quotes such as \"5m\"", DeValue::as_str)?;
        self.parsed(key, &text, duration::parse)
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<Spanned<T>> {
        let word = self.string(key)?;
        let chosen = words.iter().find(|(known, _)| known == word.get_ref());
        if chosen.is_none() {
            let hint = one_of(word.get_ref(), words.iter().map(|(known, _)| *known));
            let message = format!("`{key}` cannot be `{}`", word.get_ref());
            self.report.with_hint(&word.span(), message, Some(hint));
        }
        chosen.map(|(_, value)| Spanned::new(word.span(), *value))
    }

    /// What `parse` makes of a text.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        text: &Spanned<&'r str>,
        parse: impl FnOnce(&'r str) -> Result<T, String>,
    ) -> Option<Spanned<T>> {
        match parse(text.get_ref()) {
            Ok(value) => Some(Spanned::new(text.span(), value)),
            Err(message) => {
                self.report.at(&text.span(), format!("`{key}`: {message}"));
                None
            }
        }
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'r DeValue<'t>) -> Option<T>,
    ) -> Option<Spanned<T>> {
        let value = self.value(key)?;
        let typed = read(value.get_ref());
        if typed.is_none() {
            self.report.at(&value.span(), mismatch(key, expected, value.get_ref()));
        }
        typed.map(|typed| Spanned::new(value.span(), typed))
    }
}

pub(super) fn mismatch(name: &str, expected: &str, found: &DeValue<'_>) -> String {
    let article = if matches!(found, DeValue::Array(_) | DeValue::Integer(_)) { "an" } else { "a" };
    format!("`{name}` must be {expected}, not {article} {}", found.type_str())
}
