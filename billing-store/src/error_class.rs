//! Classifies database errors: the reaction of the caller, and the help for the operator.

use std::{borrow::Cow, error::Error};

use billing_scheduler::JobError;
use sea_orm::{
    DbErr, RuntimeErr,
    sqlx::{
        self,
        error::{DatabaseError, ErrorKind},
        postgres::PgDatabaseError,
    },
};

/// The reaction to a database error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// A conflict with another transaction: retry soon.
    Conflict,
    /// The connection or the response is lost: retry on another connection.
    Lost,
    /// The disk of the database is full or fails: retry, it may recover.
    Storage,
    /// The database rejected the rows: others may be accepted.
    Rows,
    /// An operator must repair the cause before a retry can succeed.
    Broken,
}

impl ErrorClass {
    /// The classes in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Conflict, Self::Lost, Self::Storage, Self::Rows, Self::Broken];

    /// Returns the word for metrics, such as `conflict`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Lost => "lost",
            Self::Storage => "storage",
            Self::Rows => "rows",
            Self::Broken => "broken",
        }
    }
}

/// Returns the class of `error`. Every decision about retries uses it.
#[must_use]
pub fn classify(error: &DbErr) -> ErrorClass {
    match (source(error), error) {
        (Some(source), _) => class_of(source),
        (None, DbErr::ConnectionAcquire(_)) => ErrorClass::Lost,
        (None, _) => ErrorClass::Broken,
    }
}

/// Returns whether the same attempt may succeed later without a correction by an operator.
pub(crate) fn is_transient(error: &sqlx::Error) -> bool {
    matches!(class_of(error), ErrorClass::Lost | ErrorClass::Conflict)
}

fn source(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(source))
        | DbErr::Exec(RuntimeErr::SqlxError(source))
        | DbErr::Query(RuntimeErr::SqlxError(source)) => Some(source),
        _ => None,
    }
}

fn class_of(error: &sqlx::Error) -> ErrorClass {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            match error.try_downcast_ref::<sqlx::sqlite::SqliteError>() {
                Some(_) => sqlite_class(primary_code(&code)),
                None => postgres_class(&code),
            }
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => ErrorClass::Lost,
        _ => ErrorClass::Broken,
    }
}

fn postgres_class(sqlstate: &str) -> ErrorClass {
    match sqlstate {
        // Serialization failure, deadlock, lock timeout, statement timeout.
        "40001" | "40P01" | "55P03" | "57014" => ErrorClass::Conflict,
        // The server is a standby or read-only, or it ended the session: a limit of a transaction, a shutdown, an idle session.
        "25006" | "25P03" | "25P04" | "57P01" | "57P02" | "57P03" | "57P04" | "57P05" => ErrorClass::Lost,
        // Disk full, error of a file.
        "53100" | "58030" => ErrorClass::Storage,
        // Connection errors, also those that a pooler without a server reports; a lack of resources; internal errors.
        code if ["08", "53", "XX"].iter().any(|class| code.starts_with(class)) => ErrorClass::Lost,
        // Data exceptions, constraints, and errors that triggers raise.
        code if ["22", "23", "44", "P0"].iter().any(|class| code.starts_with(class)) => ErrorClass::Rows,
        _ => ErrorClass::Broken,
    }
}

const SQLITE_ERROR: u32 = 1;
pub(crate) const SQLITE_BUSY: u32 = 5;
pub(crate) const SQLITE_LOCKED: u32 = 6;
pub(crate) const SQLITE_READONLY: u32 = 8;
pub(crate) const SQLITE_CANTOPEN: u32 = 14;

/// Returns the primary code of an extended result code of SQLite: its low byte.
fn primary_code(code: &str) -> u32 {
    code.parse::<u32>().unwrap_or_default() & 0xff
}

/// Returns the primary result code, if SQLite returned the error.
pub(crate) fn sqlite_code(error: &sqlx::Error) -> Option<u32> {
    let error = error.as_database_error()?;
    error.try_downcast_ref::<sqlx::sqlite::SqliteError>()?;
    Some(primary_code(&error.code()?))
}

fn sqlite_class(primary_code: u32) -> ErrorClass {
    match primary_code {
        SQLITE_BUSY | SQLITE_LOCKED => ErrorClass::Conflict,
        // Error of a file, disk full.
        10 | 13 => ErrorClass::Storage,
        // Too big, constraint, mismatch, range.
        18 | 19 | 20 | 25 => ErrorClass::Rows,
        _ => ErrorClass::Broken,
    }
}

/// Returns the failure of a job whose database failed: [`JobError::Unavailable`] if it does not answer or its disk is full,
/// [`JobError::Retry`] otherwise.
#[must_use]
pub fn job_error(error: DbErr) -> JobError {
    match classify(&error) {
        ErrorClass::Lost | ErrorClass::Storage => JobError::unavailable(error),
        ErrorClass::Conflict | ErrorClass::Rows | ErrorClass::Broken => JobError::retry(error),
    }
}

/// Returns the SQLSTATE of PostgreSQL or the extended result code of SQLite, if the database returned the error.
#[must_use]
pub fn code(error: &DbErr) -> Option<String> {
    let error = source(error)?.as_database_error()?;
    error.code().map(Cow::into_owned)
}

/// Whether the server is a standby or read-only.
pub(crate) fn is_read_only(error: &DbErr) -> bool {
    code(error).as_deref() == Some(READ_ONLY)
}

/// The SQLSTATE of a write on a server that only reads.
const READ_ONLY: &str = "25006";

/// Returns the text of the error, with the help for the operator if the error has one.
#[must_use]
pub fn with_help(error: &DbErr) -> String {
    let mut message = error.to_string();
    if let Some(source) = source(error)
        && let Some(attempt) = message.strip_suffix(&source.to_string())
    {
        message = format!("{attempt}{}", text(source));
    }
    match code(error).and_then(|code| help(&code, &message)) {
        Some(advice) => format!("{message}; {advice}"),
        None => message,
    }
}

/// Returns the text of the error. sqlx appends the line of PostgreSQL's source code, which an operator would take for one of the SQL.
pub(crate) fn text(error: &sqlx::Error) -> String {
    let line = match error {
        sqlx::Error::Database(error) => error.try_downcast_ref().and_then(PgDatabaseError::line),
        _ => None,
    };
    let text = error.to_string();
    let without = line.and_then(|line| text.strip_suffix(&format!(" at line {line}")));
    without.map(str::to_owned).unwrap_or(text)
}

/// Returns the error without the line of PostgreSQL's source code: see [`text`].
pub(crate) fn without_source_line(error: DbErr) -> DbErr {
    let database_error = source(&error).and_then(|source| source.as_database_error());
    let Some(of_server) = database_error.and_then(|error| error.try_downcast_ref::<PgDatabaseError>()) else {
        return error;
    };
    let without = sqlx::Error::from(ServerError::new(of_server.message().to_owned(), of_server.code()));
    let without = RuntimeErr::SqlxError(without.into());
    match error {
        DbErr::Conn(_) => DbErr::Conn(without),
        DbErr::Exec(_) => DbErr::Exec(without),
        _ => DbErr::Query(without),
    }
}

/// An error of PostgreSQL: its message and its SQLSTATE.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ServerError {
    message: String,
    code: String,
}

impl ServerError {
    pub(crate) fn new(message: String, code: impl Into<String>) -> Self {
        Self { message, code: code.into() }
    }

    /// A server that does not accept writes.
    pub(crate) fn read_only(message: String) -> Self {
        Self::new(message, READ_ONLY)
    }
}

impl DatabaseError for ServerError {
    fn message(&self) -> &str {
        &self.message
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.code))
    }

    fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

/// The documentation page with the GRANTs of each login, for messages about a missing right.
pub const GRANTS_PAGE: &str = "docs/operate/roles.md";

/// The message of SQLite about a missing table, for which it has no code.
const SQLITE_NO_TABLE: &str = "no such table: ";

fn help(code: &str, message: &str) -> Option<String> {
    let of_sqlite = (code.len() < 5).then(|| primary_code(code)).filter(|code| *code != 0);
    let advice = match (of_sqlite, code) {
        (Some(SQLITE_READONLY), _) => {
            Some("let this user write the file and its folder, or remove `mode=ro` from DATABASE_URL")
        }
        (Some(10), _) => {
            Some("check the disk of the file, which may be full or failing; the jobs continue automatically")
        }
        (Some(11 | 26), _) => {
            Some("the file is damaged: stop every process that uses it and restore a backup")
        }
        (Some(13), _) => Some("free space on its disk; the jobs continue automatically"),
        (Some(SQLITE_CANTOPEN), _) => Some(
            "if the file is missing, create it by applying the migrations (`migrate up`); if it exists, check its rights and the limit \
             of open files",
        ),
        (_, "53100") => Some("free space on the database server's disk; the jobs continue automatically"),
        (_, "25006") => Some(
            "this server is read-only: use the primary in DATABASE_URL, or check default_transaction_read_only",
        ),
        (_, "42501") => return Some(format!("grant this login the rights in {GRANTS_PAGE}")),
        (Some(SQLITE_ERROR), _) if message.contains(SQLITE_NO_TABLE) => return Some(create_table(message)),
        (_, "42P01") => {
            let create = create_table(message);
            return Some(format!(
                "{create}; if the table exists, name its schema in the search_path of this login"
            ));
        }
        (_, "3F000") => Some(
            "the search_path of this login has no schema that it may use: ALTER ROLE ... SET search_path = public",
        ),
        _ => None,
    };
    advice.map(str::to_owned)
}

/// Returns how to create the missing table that `message` names.
fn create_table(message: &str) -> String {
    if message.contains("scheduler_") {
        return "apply the migrations: an application calls `billing_store::migrate`, an operator of the daemon runs \
                `billing-daemon migrate up`"
            .to_owned();
    }
    "if the migrations create the table, apply them (`billing-daemon migrate up`)".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_have_help() {
        // A code of PostgreSQL may be all digits.
        for (code, advised) in [
            ("42P01", Some("`billing-daemon migrate up`")),
            ("1", None),
            ("13", Some("free space")),
            ("778", Some("full or failing")),
            ("1032", Some("write the file")),
            ("53100", Some("free space on the database server")),
            ("25006", Some("read-only")),
            ("42501", Some("docs/operate/roles.md")),
            ("23505", None),
            ("5", None),
        ] {
            let advice = help(code, "");
            assert!(
                advised.is_none_or(|words| advice.as_ref().is_some_and(|advice| advice.contains(words)))
                    && advice.is_some() == advised.is_some(),
                "{code}: {advice:?}"
            );
        }
    }

    #[test]
    fn error_codes_have_classes() {
        let postgres = [
            ("40001", ErrorClass::Conflict),
            ("55P03", ErrorClass::Conflict),
            ("57014", ErrorClass::Conflict),
            ("08006", ErrorClass::Lost),
            ("08P01", ErrorClass::Lost),
            ("25006", ErrorClass::Lost),
            ("25P03", ErrorClass::Lost),
            ("25P04", ErrorClass::Lost),
            ("53100", ErrorClass::Storage),
            ("58030", ErrorClass::Storage),
            ("53200", ErrorClass::Lost),
            ("53300", ErrorClass::Lost),
            ("57P01", ErrorClass::Lost),
            ("57P02", ErrorClass::Lost),
            ("57P03", ErrorClass::Lost),
            ("57P04", ErrorClass::Lost),
            ("57P05", ErrorClass::Lost),
            ("XX000", ErrorClass::Lost),
            ("22003", ErrorClass::Rows),
            ("23505", ErrorClass::Rows),
            ("P0001", ErrorClass::Rows),
            ("28P01", ErrorClass::Broken),
            ("3D000", ErrorClass::Broken),
            ("42501", ErrorClass::Broken),
        ];
        for (code, expected) in postgres {
            assert_eq!(postgres_class(code), expected, "{code}");
        }
        for (code, expected) in [
            ("5", ErrorClass::Conflict),
            ("517", ErrorClass::Conflict),
            ("2067", ErrorClass::Rows),
            ("13", ErrorClass::Storage),
            ("778", ErrorClass::Storage),
            ("11", ErrorClass::Broken),
        ] {
            assert_eq!(sqlite_class(primary_code(code)), expected, "{code}");
        }
    }
}
