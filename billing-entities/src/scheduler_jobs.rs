//! The state of the jobs that survives a restart: leases, cursors and retries.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// The state of a job.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "scheduler_jobs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub job: String,
    /// The newest fencing token.
    pub fencing_token: i64,
    /// The process that holds the lease; `None` if no process does.
    pub holder: Option<String>,
    /// The store that made the last claim, by the random id that it chose when it was opened: several may have the same name.
    pub claimed_by: Option<Id>,
    /// The end of the lease unless it is renewed.
    pub expires_at: Option<Instant>,
    /// The last scheduled time that is finished.
    pub cursor_at: Instant,
    /// The scheduled time that failed and is retried.
    pub retry_scheduled_at: Option<Instant>,
    /// The time of the retry.
    pub retry_not_before: Option<Instant>,
    /// The number of failed attempts at `retry_scheduled_at`.
    pub failed_attempts: i32,
    pub last_error: Option<String>,
    pub updated_at: Instant,
    /// The text of the schedule that the last lease cycle used.
    pub schedule: Option<String>,
    /// The first scheduled time that is not finished.
    pub next_at: Option<Instant>,
    /// The time at which `next_at` is late if no process runs it.
    pub late_at: Option<Instant>,
    /// The time at which `next_at` is late even if a process runs it.
    pub stuck_at: Option<Instant>,
    /// The schedules before `schedule` that still have times to decide, and when each was replaced, as JSON.
    pub replaced_schedules: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {}
