//! Keeps the history of runs bounded: what is too old, or too much of one job, goes. The newest row of a job stays, and so does
//! the newest that is done, which the audit uses. The events of the prepaid policy are pruned by age as well.

use std::time::Duration;

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome, serde_json::json};
use schemars::JsonSchema;
use sea_orm::DatabaseConnection;
use serde::Deserialize;

use crate::{Services, prepaid::prune::prune_events};
use billing_store::{PruneRuns, job_error};

/// How many events one transaction deletes, so that no other transaction waits for it.
const BATCH: i64 = 1_000;

/// The parameters of kind `prune-history`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PruneHistoryParams {
    /// Runs that are older go, and events of the prepaid policy, unless a delivery is pending or dead.
    #[serde(with = "billing_scheduler::duration")]
    #[schemars(with = "String", regex(pattern = billing_scheduler::duration::PATTERN))]
    pub keep: Duration,
    /// Of each job, no more than this many rows stay.
    pub keep_rows: std::num::NonZeroU32,
}

impl Default for PruneHistoryParams {
    fn default() -> Self {
        Self { keep: PruneRuns::KEEP, keep_rows: PruneRuns::KEEP_ROWS }
    }
}

/// The job of kind `prune-history`.
#[derive(Debug)]
pub struct PruneHistory {
    db: DatabaseConnection,
    params: PruneHistoryParams,
}

impl PruneHistory {
    /// Prunes the history in `services`' database.
    #[must_use]
    pub fn new(services: &Services, params: PruneHistoryParams) -> Self {
        Self { db: services.db.clone(), params }
    }
}

#[async_trait]
impl Job for PruneHistory {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let runs = PruneRuns::new(self.db.clone()).keep(self.params.keep).keep_rows(self.params.keep_rows);
        let mut pruned = match runs.run(ctx).await? {
            Outcome::Done { items, .. } => items,
            interrupted @ Outcome::Interrupted { .. } => return Ok(interrupted),
        };
        let keep_ms = i64::try_from(self.params.keep.as_millis()).unwrap_or(i64::MAX / 1_000);
        while ctx.stop_requested().is_none() {
            match prune_events(&self.db, keep_ms, BATCH).await.map_err(job_error)? {
                0 => break,
                events => pruned += events,
            }
        }
        Ok(Outcome::Done { items: pruned, details: json!({ "pruned": pruned }) })
    }
}
