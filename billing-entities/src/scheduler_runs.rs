//! The run history: every scheduled time leaves a row.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// One run, or scheduled times without a run.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_runs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    pub job: String,
    /// The daemon id for a job that every daemon runs; empty for a job that one daemon runs for all.
    pub node: String,
    pub scheduled_at: Instant,
    /// `done`, `retrying`, `dead`, `interrupted`, `skipped`, `missed`, `paused` or `rescheduled`.
    pub status: String,
    /// `schedule`, `manual`, `replay` or `queue`.
    pub cause: String,
    /// The number of the attempt; 0 if nothing ran.
    pub attempt: i32,
    /// The fencing token of the run.
    pub fencing_token: i64,
    /// The daemon that wrote the row.
    pub daemon_id: String,
    pub started_at: Instant,
    pub finished_at: Instant,
    /// The time from the scheduled time to the start.
    pub lateness_ms: i64,
    /// The number of processed items.
    pub items: i64,
    /// The reason for a scheduled time without a run.
    pub reason: Option<String>,
    pub error: Option<String>,
    /// The job's own figures.
    pub details: Option<Json>,
    /// The first scheduled time if the row covers several; `scheduled_at` is the last one.
    pub scheduled_from: Option<Instant>,
    /// The number of scheduled times in the row.
    pub scheduled_count: i64,
    /// The control request that the run answers, or the queued job.
    pub request_id: Option<Id>,
}

impl ActiveModelBehavior for ActiveModel {}
