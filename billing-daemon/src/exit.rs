//! How the program ends: a sentence for the person, a code for whoever started it.

use std::{fmt::Display, process::ExitCode};

use migration::{MigrationError, SchemaError};

use crate::escape::escaped;
use billing_store::ConnectError;

/// Exit codes, as in `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Something was looked for and found wanting: an audit with violations.
    Negative = 1,
    /// The command line was wrong.
    Usage = 64,
    /// The database cannot be reached.
    Unavailable = 69,
    /// A fault of ours.
    Internal = 70,
    /// Somebody else is at it: try again.
    TryAgain = 75,
    /// A right is missing.
    Permission = 77,
    /// The configuration, or the schema, does not fit.
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// The code to exit with.
    pub exit: Exit,
    /// What to print; empty if all is said.
    pub message: String,
}

impl Failure {
    /// A failure with its sentence.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    /// The code alone: what was wrong is printed already.
    #[must_use]
    pub fn silent(exit: Exit) -> Self {
        Self { exit, message: String::new() }
    }

    /// An error of the database while `doing`.
    #[must_use]
    pub fn database(doing: &str, error: &sea_orm::DbErr) -> Self {
        let exit = match billing_store::classify(error) {
            billing_store::ErrorClass::Lost => Exit::Unavailable,
            billing_store::ErrorClass::Conflict => Exit::TryAgain,
            _ if billing_store::code(error).as_deref() == Some("42501") => Exit::Permission,
            _ => Exit::Internal,
        };
        Self::new(exit, format!("could not {doing}: {}", escaped(&billing_store::with_help(error))))
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let refused = billing_store::code(&error.source).is_some_and(|code| code.starts_with("28"));
        Self::new(if refused { Exit::Permission } else { Exit::Unavailable }, error)
    }
}

impl From<SchemaError> for Failure {
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::Database(error) => Self::database("read which migrations are applied", &error),
            schema => Self::new(Exit::Configuration, schema),
        }
    }
}

impl From<MigrationError> for Failure {
    fn from(error: MigrationError) -> Self {
        match error {
            MigrationError::Schema(error) => error.into(),
            MigrationError::Database(error) => {
                Self::database("change the schema, so nothing was changed", &error)
            }
        }
    }
}
