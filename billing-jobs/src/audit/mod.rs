//! The invariants of the ledger. No state that a panel may create breaks one, and each violation states how it is resolved.

mod checks;
mod dialect;
mod job;
mod run;
mod unique_key;

use serde::Serialize;

pub use self::{
    job::{AuditJob, AuditParams},
    run::{audit, audit_until},
};
use crate::uncharged::Uncharged;

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// How many rows were held against an invariant.
    pub checked: u64,
    /// Each row that breaks one.
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
    /// Which invariant.
    pub check: String,
    /// What is wrong, with the row's keys.
    pub detail: String,
    /// The action of the operator that clears it. Evidence of tampering has none but to investigate.
    pub resolve: String,
}

impl Violation {
    fn new(check: &str, detail: impl Into<String>, resolve: &str) -> Self {
        Self { check: check.to_owned(), detail: detail.into(), resolve: resolve.to_owned() }
    }
}
