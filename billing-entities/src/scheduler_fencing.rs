//! The newest fencing token of each job: a process that lost its lease cannot commit.

use sea_orm::entity::prelude::*;

use crate::types::Instant;

/// The fencing row of a job.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_fencing")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub job: String,
    /// The token under which work may be committed.
    pub fencing_token: i64,
    /// The last success of the job; only billing writes it.
    pub last_success_at: Option<Instant>,
    /// The time without a success after which the panel may bill.
    pub hand_back_after_seconds: i64,
    /// Why no daemon bills, as JSON; `None` unless a committed batch is missing.
    pub halt: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {}
