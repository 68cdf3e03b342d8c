//! What survives a restart: who holds each job's lease, and what of its schedule is finished with.

use sea_orm::entity::prelude::*;

use crate::types::Instant;

/// The state of a job.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_jobs")]
pub struct Model {
    /// Its name.
    #[sea_orm(primary_key, auto_increment = false)]
    pub job: String,
    /// The newest fencing token that was given out.
    pub fencing_token: i64,
    /// Which process holds the lease; nobody when unset.
    pub holder: Option<String>,
    /// When the lease ends unless it is renewed.
    pub expires_at: Option<Instant>,
    /// The last scheduled time that is finished with.
    pub cursor_at: Instant,
    /// The scheduled time that failed and is tried again.
    pub retry_scheduled_at: Option<Instant>,
    /// When it is tried again.
    pub retry_not_before: Option<Instant>,
    /// How often it has failed.
    pub failed_attempts: i32,
    /// Why it failed last.
    pub last_error: Option<String>,
    /// When the row last changed.
    pub updated_at: Instant,
    /// The schedule that its last turn went by, as text.
    pub schedule: Option<String>,
    /// The first scheduled time that is not finished with.
    pub next_at: Option<Instant>,
    /// When that is late, if nobody runs it.
    pub late_at: Option<Instant>,
    /// When it is late even if somebody does.
    pub stuck_at: Option<Instant>,
}

impl ActiveModelBehavior for ActiveModel {}
