//! The control requests that no run has answered yet.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// One control request.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_requests")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    pub job: String,
    /// `run_now`, `replay`, `reset` or `cancel`.
    pub kind: String,
    /// The scheduled time that a `replay` runs again.
    pub scheduled_at: Option<Instant>,
    /// The claim that a `cancel` refers to.
    pub fencing_token: Option<i64>,
    pub requested_at: Instant,
    pub requested_by: String,
    pub reason: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {}
