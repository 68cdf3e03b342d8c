//! What happened: every scheduled time leaves a row.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// A run, or a scheduled time without one.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_runs")]
pub struct Model {
    /// Its key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// Its job.
    pub job: String,
    /// Which daemon it was for; empty when one ran it for all.
    pub node: String,
    /// The scheduled time.
    pub scheduled_at: Instant,
    /// `done`, `retrying`, `dead`, `interrupted`, `skipped`, `missed`, `paused` or `rescheduled`.
    pub status: String,
    /// `schedule`, `manual` or `replay`.
    pub cause: String,
    /// How often it had failed before.
    pub attempt: i32,
    /// The fencing token it ran under.
    pub fencing_token: i64,
    /// Which daemon ran it.
    pub daemon_id: String,
    /// When it started.
    pub started_at: Instant,
    /// When it ended.
    pub finished_at: Instant,
    /// How long after the scheduled time it started.
    pub lateness_ms: i64,
    /// How many things it did.
    pub items: i64,
    /// Why it was skipped, missed, paused or rescheduled.
    pub reason: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// What its job tells of it.
    pub details: Option<Json>,
    /// The first scheduled time of a stretch of them in one row.
    pub scheduled_from: Option<Instant>,
    /// How many scheduled times they are.
    pub scheduled_count: i64,
    /// What it answers.
    pub request_id: Option<Id>,
}

impl ActiveModelBehavior for ActiveModel {}
