//! The pauses of jobs. A pause that ended is history.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// One row per pause.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_pauses")]
pub struct Model {
    /// The id of the control request.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    pub job: String,
    /// The start: scheduled times from here on do not run.
    pub paused_at: Instant,
    pub paused_by: String,
    pub reason: Option<String>,
    /// The end: scheduled times from here on run. `None` while the job is paused.
    pub resumed_at: Option<Instant>,
    pub resumed_by: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {}
