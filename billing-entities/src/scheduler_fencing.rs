//! What keeps a paused daemon from committing: the newest fencing token of each job.

use sea_orm::entity::prelude::*;

use crate::types::Instant;

/// The panel guard of a job.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_fencing")]
pub struct Model {
    /// Its name.
    #[sea_orm(primary_key, auto_increment = false)]
    pub job: String,
    /// The token whose work may be committed.
    pub fencing_token: i64,
    /// When a run last ended well.
    pub last_success_at: Option<Instant>,
    /// After how many seconds without another one the panel may bill.
    pub hand_back_after_seconds: i64,
}

impl ActiveModelBehavior for ActiveModel {}
