//! What was asked of a job and not answered yet.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// A request.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_requests")]
pub struct Model {
    /// Its key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// Its job.
    pub job: String,
    /// `trigger`, `replay` or `cancel`.
    pub kind: String,
    /// What is to be replayed.
    pub scheduled_at: Option<Instant>,
    /// Which claim is to be cancelled.
    pub fencing_token: Option<i64>,
    /// When it was asked for.
    pub requested_at: Instant,
    /// Who asked.
    pub requested_by: String,
    /// Why.
    pub reason: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {}
