//! The halt of billing, as the command line prints it as JSON and HTTP answers it.

use billing_jobs::restore_detection::Halt;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

/// Why no daemon bills: a batch that was committed is missing, because a backup was restored or commits were lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct HaltView {
    /// When a daemon or a command found that.
    pub found_at: DateTime<Utc>,
    /// Who had noted the batch.
    pub found_by: String,
    /// The number of the missing batch.
    pub missing_batch: i64,
    /// When the missing batch was committed.
    pub missing_batch_at: DateTime<Utc>,
    /// The number of the newest batch in the database at that time.
    pub newest_batch: Option<i64>,
    /// What is missing, as the part of a sentence.
    pub reason: String,
}

impl From<Halt> for HaltView {
    fn from(halt: Halt) -> Self {
        Self {
            reason: halt.to_string(),
            found_at: halt.found_at,
            found_by: halt.found_by,
            missing_batch: halt.missing.id,
            missing_batch_at: halt.missing.at,
            newest_batch: halt.newest.map(|batch| batch.id),
        }
    }
}
