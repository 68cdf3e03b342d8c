//! Classifies database errors: the reaction of the caller, and the help for the operator.

use sea_orm::{DbErr, RuntimeErr, sqlx};

/// The reaction to a database error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// A conflict with another transaction: retry soon.
    Conflict,
    /// The connection or the response is lost: retry on another connection.
    Lost,
    /// The database rejected the rows: others may be accepted.
    Rows,
    /// An operator must repair the cause before a retry can succeed.
    Broken,
}

impl ErrorClass {
    /// The classes in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Conflict, Self::Lost, Self::Rows, Self::Broken];

    /// Returns the word for metrics, such as `conflict`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Lost => "lost",
            Self::Rows => "rows",
            Self::Broken => "broken",
        }
    }
}

/// Returns the class of `error`. Every decision about retries uses it.
#[must_use]
pub fn classify(error: &DbErr) -> ErrorClass {
    let source = match error {
        DbErr::Conn(RuntimeErr::SqlxError(source))
        | DbErr::Exec(RuntimeErr::SqlxError(source))
        | DbErr::Query(RuntimeErr::SqlxError(source)) => source,
        DbErr::ConnectionAcquire(_) => return ErrorClass::Lost,
        _ => return ErrorClass::Broken,
    };
    match &**source {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            match error.try_downcast_ref::<sqlx::sqlite::SqliteError>() {
                Some(_) => sqlite_class(&code),
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
        // Connection errors, administrator's shutdown, starting up, too many clients, read-only (a standby).
        "57P01" | "57P02" | "57P03" | "53300" | "25006" | "25P03" => ErrorClass::Lost,
        // A pooler rejects a client with a protocol violation, which is permanent.
        code if code.starts_with("08") && code != "08P01" => ErrorClass::Lost,
        // Data exceptions, constraints, and errors that triggers raise.
        code if ["22", "23", "44", "P0"].iter().any(|class| code.starts_with(class)) => ErrorClass::Rows,
        _ => ErrorClass::Broken,
    }
}

fn sqlite_class(code: &str) -> ErrorClass {
    // The low byte is the primary code.
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        // Busy, locked.
        5 | 6 => ErrorClass::Conflict,
        // Too big, constraint, mismatch, range.
        18 | 19 | 20 | 25 => ErrorClass::Rows,
        _ => ErrorClass::Broken,
    }
}

/// Returns the SQLSTATE of PostgreSQL or the extended result code of SQLite, if the database returned the error.
#[must_use]
pub fn code(error: &DbErr) -> Option<String> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(source))
        | DbErr::Exec(RuntimeErr::SqlxError(source))
        | DbErr::Query(RuntimeErr::SqlxError(source)) => {
            source.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned))
        }
        _ => None,
    }
}

/// Returns the text of the error, with the help for the operator if the error has one.
#[must_use]
pub fn with_help(error: &DbErr) -> String {
    match code(error).as_deref().and_then(help) {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    }
}

/// The documentation page with the GRANTs of each login, for messages about a missing right.
pub const GRANTS_PAGE: &str = "docs/operate/roles.md";

fn help(code: &str) -> Option<String> {
    let of_sqlite = code.parse::<u32>().ok().filter(|_| code.len() < 5).map(|code| code & 0xff);
    let advice = match (of_sqlite, code) {
        (Some(8), _) => {
            Some("let this user write the file and its folder, or remove `mode=ro` from DATABASE_URL")
        }
        (Some(10), _) => {
            Some("check the disk of the file, which may be full or failing; the jobs continue automatically")
        }
        (Some(11 | 26), _) => {
            Some("the file is damaged: stop every process that uses it and restore a backup")
        }
        (Some(13), _) => Some("free space on its disk; the jobs continue automatically"),
        (Some(14), _) => Some("if the file is missing, create it by applying the migrations (`migrate up`)"),
        (_, "53100") => Some("free space on the database server's disk; the jobs continue automatically"),
        (_, "25006") => Some(
            "this server is read-only: use the primary in DATABASE_URL, or check default_transaction_read_only",
        ),
        (_, "42501") => return Some(format!("grant this login the rights in {GRANTS_PAGE}")),
        (_, "42P01") => Some(
            "if the migrations create the table, apply them (`migrate up`); if it exists, name its schema in the search_path of \
             this login",
        ),
        (_, "3F000") => Some(
            "the search_path of this login has no schema that it may use: ALTER ROLE ... SET search_path = public",
        ),
        _ => None,
    };
    advice.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_have_help() {
        // A code of PostgreSQL may be all digits.
        for (code, advised) in [
            ("13", Some("free space")),
            ("778", Some("full or failing")),
            ("1032", Some("write the file")),
            ("53100", Some("free space on the database server")),
            ("25006", Some("read-only")),
            ("42501", Some("docs/operate/roles.md")),
            ("23505", None),
            ("5", None),
        ] {
            let advice = help(code);
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
            ("57P01", ErrorClass::Lost),
            ("08006", ErrorClass::Lost),
            ("25006", ErrorClass::Lost),
            ("22003", ErrorClass::Rows),
            ("23505", ErrorClass::Rows),
            ("P0001", ErrorClass::Rows),
            ("42501", ErrorClass::Broken),
            ("53100", ErrorClass::Broken),
        ];
        for (code, expected) in postgres {
            assert_eq!(postgres_class(code), expected, "{code}");
        }
        for (code, expected) in [
            ("5", ErrorClass::Conflict),
            ("517", ErrorClass::Conflict),
            ("2067", ErrorClass::Rows),
            ("13", ErrorClass::Broken),
        ] {
            assert_eq!(sqlite_class(code), expected, "{code}");
        }
    }
}
