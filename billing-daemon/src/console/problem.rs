//! Why a request to the console is not answered as requested.

use axum::http::StatusCode;
use sea_orm::DbErr;

use super::auth::Right;
use crate::exit::{Exit, Failure};

/// Why a page is not shown, or an action not performed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// The request cannot be understood.
    BadRequest(String),
    /// It is unknown who sent the request; the text is for someone who has tried to sign in.
    Unauthorized(&'static str),
    /// The person does not have this right.
    Forbidden(Right),
    /// No one may do this here.
    Refused(&'static str),
    /// The subject of the page does not exist. `nearest` is the path of the page of a similar one.
    NotFound { message: String, nearest: Option<String> },
    /// What the form shows has changed.
    Conflict(String),
    /// A field of the form is invalid.
    Invalid(String),
    /// The database failed. The error is logged, and not sent.
    Unavailable,
}

impl Problem {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) | Self::Refused(_) => StatusCode::FORBIDDEN,
            Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// One sentence for a person.
    pub(super) fn message(&self) -> String {
        match self {
            Self::BadRequest(message)
            | Self::NotFound { message, .. }
            | Self::Conflict(message)
            | Self::Invalid(message) => message.clone(),
            Self::Unauthorized(message) | Self::Refused(message) => (*message).to_owned(),
            Self::Forbidden(right) => format!("you need the right `{right}`"),
            Self::Unavailable => "the database does not answer: see the log of the daemon".to_owned(),
        }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::NotFound { message: message.into(), nearest: None }
    }

    /// No `subject` has this name. The name of a similar one is given with the path of its page.
    pub(super) fn unknown(subject: &str, name: &str, nearest: Option<(&str, String)>) -> Self {
        let hint = nearest.as_ref().map(|(similar, _)| format!(", did you mean `{similar}`?"));
        let message = format!("there is no {subject} `{name}`{}", hint.unwrap_or_default());
        Self::NotFound { message, nearest: nearest.map(|(_, path)| path) }
    }

    /// An error of the database during `doing`, a verb phrase.
    pub(super) fn database(doing: &str, error: &DbErr) -> Self {
        Failure::database(doing, error).into()
    }
}

/// What a command reports as wrong usage does not exist, or not once.
impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        if matches!(failure.exit, Exit::Usage | Exit::Negative) {
            return Self::not_found(failure.message);
        }
        tracing::warn!("HTTP request failed: {}", failure.message);
        Self::Unavailable
    }
}
