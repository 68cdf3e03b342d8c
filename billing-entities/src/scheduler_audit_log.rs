//! Everything that people ever changed or asked of a job: a chain of hashes.

use sea_orm::entity::prelude::*;

use crate::types::Instant;

/// Who did what, when and why.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_audit_log")]
pub struct Model {
    /// Its place in the chain, from 1.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    /// When, by the database's clock.
    pub at: Instant,
    /// Who.
    pub actor: String,
    /// `pause`, `resume`, `trigger`, `replay`, `cancel`, `bill`, `adopt`, `release`, `reload`, ...
    pub action: String,
    /// Of which job.
    pub job: String,
    /// Why.
    pub reason: Option<String>,
    /// What else, as JSON.
    pub details: String,
    /// The hash of the row before.
    pub previous_hash: String,
    /// The hash of this row.
    pub hash: String,
}

impl ActiveModelBehavior for ActiveModel {}
