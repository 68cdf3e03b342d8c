//! How the program ends: a message for the operator, an exit code for the caller.

use std::{
    fmt::{self, Display},
    process::ExitCode,
};

use migration::{MigrationError, SchemaError};
use sea_orm::{DbErr, RuntimeErr, SqlxError};

use crate::escape::escaped;
use billing_scheduler::StoreError;
use billing_store::{ConnectError, QueryFailed};

/// Exit codes, as in `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A check has a finding, such as an audit with violations.
    Negative = 1,
    /// The command line is wrong.
    Usage = 64,
    /// The database cannot be reached.
    Unavailable = 69,
    /// An internal error.
    Internal = 70,
    /// A temporary failure, such as another process that holds a lease.
    TryAgain = 75,
    /// A permission is missing.
    Permission = 77,
    /// The configuration or the schema is wrong.
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What failed and why; empty if the command has printed that already.
    pub message: String,
    /// What the operator can do about it.
    pub help: Vec<String>,
}

impl Failure {
    /// A failure with its message.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string(), help: Vec::new() }
    }

    /// Only an exit code: the command has printed the reason.
    #[must_use]
    pub fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// Adds what the operator can do about it.
    #[must_use]
    pub fn help(mut self, help: impl Display) -> Self {
        self.help.push(help.to_string());
        self
    }

    /// An error of the database during `doing`, a verb phrase.
    #[must_use]
    pub fn database(doing: &str, error: &DbErr) -> Self {
        let exit = match billing_store::classify(error) {
            billing_store::ErrorClass::Lost | billing_store::ErrorClass::Storage => Exit::Unavailable,
            billing_store::ErrorClass::Conflict => Exit::TryAgain,
            _ if billing_store::code(error).as_deref() == Some("42501") => Exit::Permission,
            _ => Exit::Internal,
        };
        Self::new(exit, format!("cannot {doing}: {}", escaped(&billing_store::with_help(error))))
    }

    /// An error of the scheduler's store during `doing`, a verb phrase.
    #[must_use]
    pub fn store(doing: &str, error: StoreError) -> Self {
        match error {
            StoreError::LeaseLost { .. } => Self::new(Exit::TryAgain, error),
            StoreError::AlreadyFinished { .. } | StoreError::UnknownJob { .. } => {
                Self::new(Exit::Internal, error)
            }
            StoreError::Unavailable(error) => match error.downcast_ref::<QueryFailed>() {
                Some(error) => Self::database(doing, &error.0),
                None => Self::new(Exit::Unavailable, error),
            },
        }
    }
}

/// The message, then each line of the help.
impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.help.iter().try_for_each(|help| write!(f, "\nhelp: {help}"))
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let exit = match &error.source {
            DbErr::Conn(RuntimeErr::SqlxError(source)) if matches!(**source, SqlxError::Configuration(_)) => {
                Exit::Configuration
            }
            source if billing_store::code(source).is_some_and(|code| code.starts_with("28")) => {
                Exit::Permission
            }
            _ => Exit::Unavailable,
        };
        Self::new(exit, error)
    }
}

impl From<SchemaError> for Failure {
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::Database(error) => Self::database("read the applied migrations", &error),
            schema => Self::new(Exit::Configuration, schema),
        }
    }
}

impl From<MigrationError> for Failure {
    fn from(error: MigrationError) -> Self {
        match error {
            MigrationError::Schema(error) => error.into(),
            MigrationError::Database(error) => Self::database("change the schema", &error),
        }
    }
}
