//! Reads the columns of a row one at a time, so that a value that cannot be read costs its row alone.
//!
//! A column may hold what its type promises not to hold: the panel drops a NOT NULL, text is not UTF-8 (SQLite never checks it,
//! and neither does PostgreSQL in a database whose encoding is `SQL_ASCII`), JSON in a text column is not JSON.

use std::fmt::{self, Write as _};

use sea_orm::{ColIdx, DbErr, QueryResult, TryGetError, TryGetable, sqlx, sqlx::Row as _};

/// No more characters of an unreadable value are shown than these.
const SHOWN: usize = 60;

/// A value that cannot be read: which column, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{column} {problem}")]
pub struct Unreadable {
    column: &'static str,
    problem: String,
}

impl Unreadable {
    /// The value of `column` cannot be read because it `problem`, such as "is NULL".
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

/// The value at `index`, which is that of `column`.
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

/// The text at `index`, which must be there.
pub fn text(row: &QueryResult, index: impl ColIdx, column: &'static str) -> Result<String, Unreadable> {
    optional_text(row, index, column)?.ok_or_else(|| Unreadable::new(column, "is NULL"))
}

/// The text at `index`, or NULL.
pub fn optional_text(
    row: &QueryResult,
    index: impl ColIdx,
    column: &'static str,
) -> Result<Option<String>, Unreadable> {
    // This way costs nothing more than the text, which is nearly always readable.
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

/// The JSON at `index`: `jsonb`, or on SQLite a text. NULL is `Value::Null`.
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

/// The text at `index` for people, whatever it is: bytes that are not UTF-8 are written as `\xff`. Empty if it is NULL.
pub fn lossy(row: &QueryResult, index: impl ColIdx) -> String {
    match String::try_get_by(row, index) {
        Ok(text) => text,
        Err(_) => bytes(row, index).map(|bytes| escaped(&bytes)).unwrap_or_default(),
    }
}

/// The bytes of a text.
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
