//! The audit log: every change and every control request of an operator, in a chain of hashes.

use sea_orm::entity::prelude::*;

use crate::types::Instant;

/// One entry of the audit log.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_audit_log")]
pub struct Model {
    /// The position in the chain, from 1, without gaps.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    /// The time, from the clock of the database.
    pub at: Instant,
    /// The operator: `user@host`, the name of `--as`, or the person of the console.
    pub actor: String,
    /// The action, such as `pause`, `trigger`, `bill` or `guard install`.
    pub action: String,
    /// The name of the job; empty if the action concerns no job.
    pub job: String,
    pub reason: Option<String>,
    /// Further facts as a JSON object.
    pub details: String,
    /// The hash of the previous row; empty for the first one.
    pub previous_hash: String,
    pub hash: String,
}

impl ActiveModelBehavior for ActiveModel {}
