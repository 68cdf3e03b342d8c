//! The statements of a billing run, for both databases, and the lists of rows that they take.

pub(super) mod postgres;
pub(super) mod rows;
pub(super) mod sqlite;
mod statements;

use sea_orm::DbBackend;

use crate::panel::Panel;

pub(crate) use self::statements::Statements;

impl Statements {
    pub(super) fn of(panel: Panel) -> Self {
        let statements = match panel.backend {
            DbBackend::Sqlite => sqlite::statements(),
            _ => postgres::statements(panel),
        };
        #[cfg(feature = "testing")]
        let statements = statements.mutated();
        statements
    }
}

/// SQL for the microseconds since 1970 of an instant of the panel's; NULL for NULL and for what is not an instant.
#[must_use]
pub fn micros(backend: DbBackend, column: &str) -> String {
    match backend {
        DbBackend::Sqlite => sqlite::micros(column),
        _ => postgres::micros(column),
    }
}
