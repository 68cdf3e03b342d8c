//! What keeps a paused daemon from committing: the newest fencing token of each job.

use sea_orm::entity::prelude::*;

use crate::types::Instant;

/// The fence of a job.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_fences")]
pub struct Model {
    /// Its name.
    #[sea_orm(primary_key, auto_increment = false)]
    pub job: String,
    /// The token whose work may be committed.
    pub fence: i64,
    /// When a run last ended well.
    pub worked_at: Option<Instant>,
    /// After how many seconds without another one the panel may bill.
    pub hand_back_after_seconds: i64,
}

impl ActiveModelBehavior for ActiveModel {}
