//! Reads a parsed TOML tree key by key, so that every mistake in it is reported at once with its line and column.

use std::{
    any::TypeId,
    cell::RefCell,
    collections::HashMap,
    ops::{Range, RangeInclusive},
    rc::Rc,
    time::Duration,
};

use billing_kinds::Secret;
use billing_scheduler::duration;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    Diagnostic, Location,
    position::position,
    suggest::one_of,
    tables::{TableKeys, Words},
};

/// A file, and the mistakes found in it so far.
pub(super) struct Report<'t> {
    file: &'t str,
    text: &'t str,
    now: DateTime<Utc>,
    found: RefCell<Vec<Diagnostic>>,
    warnings: RefCell<Vec<Diagnostic>>,
    /// The keys of each table, derived from its type once.
    keys: RefCell<HashMap<TypeId, Rc<TableKeys>>>,
}

impl<'t> Report<'t> {
    /// Returns an empty report on `text`, which is read at `now`.
    pub(super) fn new(file: &'t str, text: &'t str, now: DateTime<Utc>) -> Self {
        Self {
            file,
            text,
            now,
            found: RefCell::default(),
            warnings: RefCell::default(),
            keys: RefCell::default(),
        }
    }

    /// Returns when the file is read.
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.now
    }

    pub(super) fn push(&self, diagnostic: Diagnostic) {
        self.found.borrow_mut().push(diagnostic);
    }

    pub(super) fn error(&self, span: &Range<usize>, message: impl Into<String>) {
        self.push(Diagnostic::new(self.location(span), message));
    }

    pub(super) fn error_with_help(
        &self,
        span: &Range<usize>,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        self.push(Diagnostic::new(self.location(span), message).with_help(help));
    }

    /// Reports a value that is valid but probably not intended.
    pub(super) fn warn(&self, span: &Range<usize>, message: impl Into<String>, help: Option<String>) {
        self.warnings.borrow_mut().push(Diagnostic::new(self.location(span), message).with_help(help));
    }

    /// Returns the number of warnings.
    pub(super) fn count_warnings(&self) -> usize {
        self.warnings.borrow().len()
    }

    /// Removes all but the first `count` warnings, because the rest concerns a disabled job.
    pub(super) fn truncate_warnings(&self, count: usize) {
        self.warnings.borrow_mut().truncate(count);
    }

    /// Returns the warnings in the order of the file.
    pub(super) fn take_warnings(&self) -> Vec<Diagnostic> {
        let mut warnings = self.warnings.take();
        warnings.sort();
        warnings
    }

    pub(super) fn location(&self, span: &Range<usize>) -> Location {
        let (line, column) = position(self.text, span.start);
        Location { source: self.file.to_owned(), line: Some(line), column: Some(column) }
    }

    /// Returns the span of `part` of the string `text`, which has the span `span`; all of it if the file contains escapes.
    pub(super) fn part(&self, span: &Range<usize>, text: &str, part: &Range<usize>) -> Range<usize> {
        let written = self.text.get(span.clone()).and_then(|written| written.find(text));
        written.map_or_else(|| span.clone(), |at| span.start + at + part.start..span.end)
    }

    /// Returns the value, or reports its error.
    pub(super) fn accept<T>(&self, result: Result<T, Diagnostic>) -> Option<T> {
        result.map_err(|problem| self.push(problem)).ok()
    }

    /// Returns every mistake in the order of the file.
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
    keys: Rc<TableKeys>,
}

impl<'r, 't> Section<'r, 't> {
    /// Reads the table with the keys of `T`, and reports unknown keys.
    pub(super) fn new<T: JsonSchema + 'static>(
        report: &'r Report<'t>,
        entries: &'r DeTable<'t>,
        span: Range<usize>,
    ) -> Self {
        let mut all_keys = report.keys.borrow_mut();
        let keys = all_keys.entry(TypeId::of::<T>()).or_insert_with(|| Rc::new(TableKeys::of::<T>()));
        let keys = Rc::clone(keys);
        drop(all_keys);
        for key in entries.keys().filter(|key| !keys.known.iter().any(|known| known == key.get_ref())) {
            let help = one_of(key.get_ref(), keys.known.iter().map(String::as_str));
            report.error_with_help(&key.span(), format!("unknown key `{}`", key.get_ref()), Some(help));
        }
        Self { report, entries, span, keys }
    }

    /// Reads `value` as a table with the keys of `T`, and reports unknown and missing keys.
    pub(super) fn of<T: JsonSchema + 'static>(
        report: &'r Report<'t>,
        name: &str,
        value: &'r Spanned<DeValue<'t>>,
        expected: &str,
    ) -> Option<Self> {
        let Some(entries) = value.get_ref().as_table() else {
            report.error(&value.span(), mismatch(name, expected, value.get_ref()));
            return None;
        };
        let section = Self::new::<T>(report, entries, value.span());
        for key in section.keys.required.iter().filter(|key| section.value(key).is_none()) {
            report.error(&section.span, format!("missing key `{key}`"));
        }
        Some(section)
    }

    pub(super) fn report(&self) -> &'r Report<'t> {
        self.report
    }

    /// Returns the position of the table.
    pub(super) fn span(&self) -> &Range<usize> {
        &self.span
    }

    pub(super) fn value(&self, key: &str) -> Option<&'r Spanned<DeValue<'t>>> {
        debug_assert!(self.keys.known.iter().any(|known| known == key), "the schema does not have `{key}`");
        self.entries.get(key)
    }

    /// Returns the position of `key`, if the table has it.
    pub(super) fn key(&self, key: &str) -> Option<Range<usize>> {
        self.entries.get_key_value(key).map(|(key, _)| key.span())
    }

    pub(super) fn table<T: JsonSchema + 'static>(&self, key: &str, expected: &str) -> Option<Self> {
        Self::of::<T>(self.report, key, self.value(key)?, expected)
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

    /// Reads a secret, or where it is.
    pub(super) fn secret(&self, key: &str) -> Option<Secret> {
        let value = self.value(key)?;
        let expected = "text, { env = \"NAME\" }, { file = \"/path\" } or { credential = \"name\" }";
        if let DeValue::String(text) = value.get_ref() {
            return Some(Secret::Text(text.to_string()));
        }
        let source = Self::of::<Secret>(self.report, key, value, expected)?;
        match ["env", "file", "credential"].map(|key| source.value(key).is_some()) {
            [true, false, false] => {
                source.string("env").map(|name| Secret::Env(name.into_inner().to_owned()))
            }
            [false, true, false] => source.string("file").map(|path| Secret::File(path.into_inner().into())),
            [false, false, true] => {
                let name = source.string("credential")?.into_inner();
                Secret::credential(name)
                    .map_err(|error| self.report.error(&value.span(), error.to_string()))
                    .ok()
            }
            _ => {
                self.report.error(&value.span(), format!("`{key}` must be {expected}"));
                None
            }
        }
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        self.typed(key, "true or false", DeValue::as_bool).map(Spanned::into_inner)
    }

    /// Reads a whole number from 1.
    pub(super) fn count(&self, key: &str) -> Option<u32> {
        self.number(key, 1..=u32::MAX).map(Spanned::into_inner)
    }

    /// Reads a whole number within `limits`.
    pub(super) fn number(&self, key: &str, limits: RangeInclusive<u32>) -> Option<Spanned<u32>> {
        let number = self.typed(key, "a whole number", DeValue::as_integer)?;
        let read = u32::from_str_radix(number.get_ref().as_str(), number.get_ref().radix());
        let read = read.ok().filter(|read| limits.contains(read));
        if read.is_none() {
            let (least, most) = (limits.start(), limits.end());
            let message =
                format!("`{key}` must be at least {least} and at most {most}, not {}", number.get_ref());
            self.report.error(&number.span(), message);
        }
        read.map(|read| Spanned::new(number.span(), read))
    }

    /// Reads an instant in quotes or as TOML writes it, with its offset from UTC.
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
            self.report.error(&span, format!("`{key}` must be {expected}, not {}", text.get_ref()));
        }
        instant.map(|instant| Spanned::new(span, instant.to_utc()))
    }

    pub(super) fn duration(&self, key: &str) -> Option<Spanned<Duration>> {
        let text = self.typed(key, "a duration in quotes such as \"5m\"", DeValue::as_str)?;
        self.parsed(key, &text, duration::parse)
    }

    /// Reads one of a few words.
    pub(super) fn choice<T: Words>(&self, key: &str) -> Option<Spanned<T>> {
        let word = self.string(key)?;
        let chosen = T::WORDS.iter().find(|(known, _)| known == word.get_ref());
        if chosen.is_none() {
            let help = one_of(word.get_ref(), T::WORDS.iter().map(|(known, _)| *known));
            let message = format!("`{key}` cannot be `{}`", word.get_ref());
            self.report.error_with_help(&word.span(), message, Some(help));
        }
        chosen.map(|(_, value)| Spanned::new(word.span(), *value))
    }

    /// Parses the string of a key, and reports an invalid one.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        text: &Spanned<&'r str>,
        parse: impl FnOnce(&'r str) -> Result<T, String>,
    ) -> Option<Spanned<T>> {
        match parse(text.get_ref()) {
            Ok(value) => Some(Spanned::new(text.span(), value)),
            Err(message) => {
                self.report.error(&text.span(), format!("`{key}`: {message}"));
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
            self.report.error(&value.span(), mismatch(key, expected, value.get_ref()));
        }
        typed.map(|typed| Spanned::new(value.span(), typed))
    }
}

pub(super) fn mismatch(name: &str, expected: &str, found: &DeValue<'_>) -> String {
    let article = if matches!(found, DeValue::Array(_) | DeValue::Integer(_)) { "an" } else { "a" };
    format!("`{name}` must be {expected}, not {article} {}", found.type_str())
}
