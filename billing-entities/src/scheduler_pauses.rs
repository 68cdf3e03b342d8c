//! When a job was paused, by whom and why.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// A pause.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_pauses")]
pub struct Model {
    /// Its key: that of the request.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// Its job.
    pub job: String,
    /// Scheduled times from here on are not run.
    pub paused_at: Instant,
    /// Who paused it.
    pub paused_by: String,
    /// Why.
    pub reason: Option<String>,
    /// Scheduled times from here on are run; unset while it is paused.
    pub resumed_at: Option<Instant>,
    /// Who resumed it.
    pub resumed_by: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {}
