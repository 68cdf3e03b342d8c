//! The ids of the panel's rows: nearly always UUIDs, on SQLite any text.

use std::{fmt, sync::Arc};

use sea_orm::Value;
use uuid::Uuid;

/// The id of a row of the panel's. Copied without allocation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Id {
    Uuid(Uuid),
    /// SQLite takes any text for an id, and what is no UUID in its usual form must come back as it was.
    Text(Arc<str>),
}

impl Id {
    /// Represents a missing id in a list of ids.
    pub(super) const NONE: Uuid = Uuid::nil();

    pub(super) fn uuid(&self) -> Uuid {
        match self {
            Self::Uuid(uuid) => *uuid,
            // PostgreSQL has no such row: the check of the row count fails.
            Self::Text(_) => Self::NONE,
        }
    }
}

/// The JSON array of `ids`, as a parameter.
pub(super) fn list<'a>(ids: impl IntoIterator<Item = &'a Id>) -> Value {
    let texts: Vec<String> = ids.into_iter().map(Id::to_string).collect();
    serde_json::Value::from(texts).to_string().into()
}

impl From<&str> for Id {
    fn from(text: &str) -> Self {
        let mut buffer = Uuid::encode_buffer();
        match Uuid::try_parse(text) {
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut buffer) == text => Self::Uuid(uuid),
            _ => Self::Text(text.into()),
        }
    }
}

impl From<String> for Id {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => uuid.fmt(f),
            Self::Text(text) => f.pad(text),
        }
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_text_survives_conversion() {
        for text in [
            "0198c1f2-6a70-7000-8000-00000000002a",
            "0198C1F2-6A70-7000-8000-00000000002A",
            "0198c1f26a7070008000-00000000002a",
            "instance 1",
            "",
        ] {
            assert_eq!(Id::from(text).to_string(), text);
        }
        assert!(matches!(Id::from("0198c1f2-6a70-7000-8000-00000000002a"), Id::Uuid(_)));
    }
}
