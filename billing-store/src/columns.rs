//! Reads the columns of a row one at a time, so that a value that cannot be read affects its row alone.
//!
//! A column of a foreign table may contain unexpected values: the panel drops a NOT NULL, text is not UTF-8 (SQLite never checks it,
//! and neither does PostgreSQL in a database whose encoding is `SQL_ASCII`), JSON in a text column is not JSON.

use std::fmt::{self, Write as _};

use sea_orm::{ColIdx, DbErr, QueryResult, TryGetError, TryGetable, sqlx, sqlx::Row as _};

/// The number of characters of an unreadable value that a message contains.
const SHOWN: usize = 60;

/// A value that cannot be read: the column and the problem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{column} {problem}")]
pub struct Unreadable {
    column: &'static str,
    problem: String,
}

impl Unreadable {
    /// Returns the error for a value of `column`; `problem` is a predicate such as "is NULL".
    #[must_use]
    pub fn new(column: &'static str, problem: impl fmt::Display) -> Self {
        Self { column, problem: problem.to_string() }
    }
}

impl From<Unreadable> for DbErr {
    fn from(unreadable: Unreadable) -> Self {
        Self::Type(unreadable.to_string())
    }
}

/// Returns the value at `index`. Errors name it `column`.
pub fn value<T: TryGetable>(
    row: &QueryResult,
    index: impl ColIdx,
    column: &'static str,
) -> Result<T, Unreadable> {
    T::try_get_by(row, index).map_err(|error| match error {
        TryGetError::Null(_) => Unreadable::new(column, "is NULL"),
        TryGetError::DbErr(error) => Unreadable::new(column, format!("cannot be read: {error}")),
    })
}

/// Returns the text at `index`, which must not be NULL.
pub fn text(row: &QueryResult, index: impl ColIdx, column: &'static str) -> Result<String, Unreadable> {
    optional_text(row, index, column)?.ok_or_else(|| Unreadable::new(column, "is NULL"))
}

/// Returns the text at `index`; `None` if it is NULL.
pub fn optional_text(
    row: &QueryResult,
    index: impl ColIdx,
    column: &'static str,
) -> Result<Option<String>, Unreadable> {
    // The bytes are read only after a failure, because nearly every text is readable.
    match Option::<String>::try_get_by(row, index) {
        Ok(text) => Ok(text),
        Err(error) => Err(match bytes(row, index) {
            Some(bytes) if std::str::from_utf8(&bytes).is_err() => {
                Unreadable::new(column, format!("is not valid UTF-8: `{}`", shown(&bytes)))
            }
            _ => Unreadable::new(column, format!("cannot be read: {}", DbErr::from(error))),
        }),
    }
}

/// Returns the JSON at `index`: `jsonb` on PostgreSQL, a text on SQLite. NULL is `Value::Null`.
pub fn json(
    row: &QueryResult,
    index: impl ColIdx,
    column: &'static str,
) -> Result<serde_json::Value, Unreadable> {
    if row.try_as_pg_row().is_some() {
        return Ok(value::<Option<serde_json::Value>>(row, index, column)?.unwrap_or_default());
    }
    let Some(text) = optional_text(row, index, column)? else { return Ok(serde_json::Value::Null) };
    serde_json::from_str(&text).map_err(|error| {
        Unreadable::new(column, format!("is not valid JSON: {error}: `{}`", shown(text.as_bytes())))
    })
}

/// Returns the text at `index` for people: bytes that are not UTF-8 are written as `\xff`. Empty if it is NULL.
pub fn lossy(row: &QueryResult, index: impl ColIdx) -> String {
    match String::try_get_by(row, index) {
        Ok(text) => text,
        Err(_) => bytes(row, index).map(|bytes| escaped(&bytes)).unwrap_or_default(),
    }
}

/// Returns the bytes of a text.
fn bytes(row: &QueryResult, index: impl ColIdx) -> Option<Vec<u8>> {
    if let Some(row) = row.try_as_pg_row() {
        let value = row.try_get_raw(index.as_sqlx_postgres_index()).ok()?;
        return value.as_bytes().ok().map(<[u8]>::to_vec);
    }
    let row = row.try_as_sqlite_row()?;
    let value = row.try_get_raw(index.as_sqlx_sqlite_index()).ok()?;
    <Vec<u8> as sqlx::Decode<'_, sqlx::Sqlite>>::decode(value).ok()
}

fn shown(bytes: &[u8]) -> String {
    let text = escaped(bytes);
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_bytes_are_shown_escaped() {
        for (bytes, expected) in [
            (&b"web"[..], "web"),
            (b"w\xffeb\xc3", "w\\xffeb\\xc3"),
            ("w\u{e9}b".as_bytes(), "w\u{e9}b"),
            (b"", ""),
        ] {
            assert_eq!(shown(bytes), expected);
        }
        assert_eq!(shown(&[b'a'; 100]), format!("{}...", "a".repeat(SHOWN)));
    }
}
