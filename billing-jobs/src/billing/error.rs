//! The errors of a billing run.

use billing_scheduler::JobError;
use sea_orm::DbErr;

use super::spike::Spike;
use crate::{currency::Currency, money::Money, restore_detection::RestoreError};
use billing_store::{ErrorClass, classify, with_help};

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum BillingError {
    /// Another daemon has claimed the job since.
    #[error("the fencing token of this run is no longer the newest: another daemon bills")]
    Fenced,
    /// The panel could charge the same hours.
    #[error(
        "the panel guard that billing relies on is missing, disabled or not the one of this version, so the panel could charge the \
         same hours: nothing more is charged. Run `billing-daemon guard install`; or, if the panel's billing is switched off, set \
         `panel-billing = \"off\"` in the [daemon] section of jobs.toml and restart the daemon"
    )]
    Unguarded,
    /// The database failed.
    #[error("cannot {doing}: {}", with_help(source))]
    Database {
        /// The attempted step, as a verb phrase.
        doing: &'static str,
        /// The error of the database.
        source: DbErr,
    },
    /// The database has lost a committed batch, or that cannot be checked.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Nothing was charged.
    #[error("nothing was charged, because {0}, then run `billing-daemon bill {approve}`", approve = .0.approval())]
    Spike(Spike),
    /// The batches that are left would charge more than the run may.
    #[error(transparent)]
    CeilingExceeded(#[from] CeilingExceeded),
    /// The database rejects the charges of every customer.
    #[error(
        "the database refuses charges, so the run ends ({instances} instances were refused): {complaint}"
    )]
    Refused {
        /// How many instances were refused.
        instances: u64,
        /// The database's error for the last one.
        complaint: String,
    },
    /// Some batches conflicted with other transactions in every attempt. Everything else is billed.
    #[error("{batches} batches could not be posted, everything else was: {last}")]
    Unposted {
        /// The number of these batches.
        batches: usize,
        /// The last reason.
        last: String,
    },
}

/// A batch that would charge more than its run may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this run charged {charged} {currency}, and its next batch would exceed the {ceiling} that it may charge by what was due when it \
     began: the next run charges the rest"
)]
pub struct CeilingExceeded {
    /// The currency of both amounts.
    pub currency: Currency,
    /// What the run charged before.
    pub charged: Money,
    /// What the run may charge.
    pub ceiling: Money,
}

impl From<BillingError> for JobError {
    fn from(error: BillingError) -> Self {
        match &error {
            // A retry would find the same; the next scheduled run checks again.
            BillingError::Spike(_) | BillingError::Restore(RestoreError::Halted(_)) => Self::fatal(error),
            BillingError::Database { source, .. } | BillingError::Restore(RestoreError::Database(source))
                if matches!(classify(source), ErrorClass::Lost | ErrorClass::Storage) =>
            {
                Self::unavailable(error)
            }
            _ => Self::retry(error),
        }
    }
}

impl BillingError {
    pub(super) fn database(doing: &'static str) -> impl Fn(DbErr) -> Self {
        move |source| Self::Database { doing, source }
    }
}
