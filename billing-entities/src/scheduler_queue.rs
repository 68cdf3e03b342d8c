//! The one-off jobs of the queue.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// A job with its payload, and its claim.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_queue")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// The kind, which selects the code that runs.
    pub kind: String,
    pub payload: Json,
    pub scheduled_at: Instant,
    /// The earliest start of the next attempt.
    pub not_before: Instant,
    /// A job with a greater priority is claimed first.
    pub priority: i32,
    /// The key that no two unfinished jobs of a kind share.
    pub unique_key: Option<String>,
    pub failed_attempts: i32,
    /// The number of the last claim; 0 if the job was never claimed.
    pub fencing_token: i64,
    /// The process of the last claim.
    pub holder: Option<String>,
    /// The end of the claim; `NULL` if no process runs the job.
    pub expires_at: Option<Instant>,
    pub finished_at: Option<Instant>,
}

impl ActiveModelBehavior for ActiveModel {}
