//! The invariants of the ledger. No state that a panel may create breaks one, and each violation states how it is resolved.

mod checks;
mod dialect;
mod job;
mod run;
mod unique_key;

use serde::Serialize;

#[cfg(feature = "testing")]
pub use self::run::queries;
pub use self::{
    job::{AuditJob, AuditParams},
    run::{audit, audit_until},
};
use crate::uncharged::Uncharged;

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// The number of rows that were compared with an invariant.
    pub checked: u64,
    /// The rows that break an invariant.
    pub violations: Vec<Violation>,
    /// The debts that were ever closed without a charge, by reason. They break no invariant.
    #[serde(serialize_with = "by_reason")]
    pub uncharged: Vec<Uncharged>,
}

fn by_reason<S: serde::Serializer>(uncharged: &[Uncharged], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(uncharged.iter().map(|of_one| (&of_one.reason, &of_one.debt)))
}

/// A row that breaks an invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The name of the invariant.
    pub check: String,
    /// What is wrong, with the keys of the row.
    pub detail: String,
    /// The action of the operator that clears it. Evidence of tampering has none but to investigate.
    pub resolve: String,
}

impl Violation {
    fn new(check: &str, detail: impl Into<String>, resolve: &str) -> Self {
        Self { check: check.to_owned(), detail: detail.into(), resolve: resolve.to_owned() }
    }
}
