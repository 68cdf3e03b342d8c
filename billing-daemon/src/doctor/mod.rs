//! Checks for everything that could prevent billing, each with a finding and what to do about it.

mod bundle;
mod database;
mod host;
mod rights;

use std::fmt;

use serde::Serialize;

use crate::exit::Failure;

pub(crate) use bundle::Bundle;
pub(crate) use database::examine as examine_database;
pub(crate) use host::{HostFacts, StateFolder, examine as examine_host};

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of the check.
    pub check: String,
    /// Whether there is a problem.
    pub verdict: Verdict,
    /// The finding, in a sentence without a period.
    pub message: String,
    /// What to do about it, if there is a problem.
    pub advice: Option<String>,
}

/// Whether a check found a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The check found no problem.
    Ok,
    /// It works, but the operator should know.
    Warn,
    /// It does not work.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

impl Finding {
    /// A check without a problem.
    pub(crate) fn ok(check: impl Into<String>, message: impl Into<String>) -> Self {
        Self { check: check.into(), verdict: Verdict::Ok, message: message.into(), advice: None }
    }

    /// A problem that does not prevent billing.
    pub(crate) fn warn(
        check: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Warn, advice: Some(advice.into()), ..Self::ok(check, message) }
    }

    /// A problem that prevents billing.
    pub(crate) fn fail(
        check: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Fail, advice: Some(advice.into()), ..Self::ok(check, message) }
    }

    /// The failure of a command as a finding.
    pub(crate) fn of_failure(check: impl Into<String>, failure: Failure) -> Self {
        let advice = (!failure.help.is_empty()).then(|| failure.help.join("; "));
        Self { verdict: Verdict::Fail, advice, ..Self::ok(check, failure.message) }
    }
}
