//! The statements of billing for both databases, and the lists of rows that they take.

pub(super) mod rows;
mod statements;

use sea_orm::DbBackend;

pub(crate) use self::statements::{Sections, Statements};

/// SQL for the microseconds since 1970 of an instant of the panel; NULL for NULL and for what is not an instant.
#[must_use]
pub fn micros(backend: DbBackend, column: &str) -> String {
    match backend {
        // `unixepoch(.., 'subsec')` keeps milliseconds only, so the fraction is read from the text.
        DbBackend::Sqlite => format!(
            "(unixepoch({column}) * 1000000
              + CASE WHEN substr({column}, 20, 1) = '.'
                     THEN CAST(round(CAST('0' || substr({column}, 20, 7) AS REAL) * 1000000) AS INTEGER) ELSE 0 END)"
        ),
        _ => format!(
            "CASE WHEN {column} > '-infinity' AND {column} < '290000-01-01Z'
                  THEN (extract(epoch FROM {column}) * 1000000)::bigint END"
        ),
    }
}

/// SQL for whether an amount of the panel's ledger is valid. The sums leave out an invalid one, and the audit reports it.
pub(crate) fn is_amount(backend: DbBackend, column: &str) -> String {
    match backend {
        DbBackend::Sqlite => format!("({column} BETWEEN -999999999999 AND 999999999999)"),
        _ => format!("(abs({column}) < 100000000 AND {column} = round({column}::numeric, 4))"),
    }
}

/// SQL for a `timestamptz` with the panel's precision, which is a millisecond.
pub(crate) fn milliseconds(column: &str) -> String {
    format!("date_trunc('milliseconds', {column})")
}
