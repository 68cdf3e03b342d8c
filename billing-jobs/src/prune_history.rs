//! Keeps the history of runs bounded: what is too old, or too much of one job, goes. The newest row of a job stays, and so does
//! the newest that is done, which the audit uses. The events of the prepaid policy are pruned by age as well.

use std::time::Duration;

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome, serde_json::json};
use schemars::JsonSchema;
use sea_orm::{DatabaseConnection, DbBackend, DbErr, Value};
use serde::Deserialize;

use crate::{Services, prepaid::prune::prune_events};
use billing_store::{SQLITE_NOW, execute, job_error, query_one, statement};

/// How many rows one transaction deletes, so that no other transaction waits for it.
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
        let keep_rows = std::num::NonZeroU32::new(10_000).expect("ten thousand is not zero");
        Self { keep: Duration::from_hours(90 * 24), keep_rows }
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

    /// The first job by name after `job` that has rows.
    async fn job_after(&self, job: &str) -> Result<Option<String>, DbErr> {
        // One step in an index, where DISTINCT would read all of it.
        let sql = "SELECT min(job) AS job FROM scheduler_runs WHERE job > $1";
        let row = query_one(&self.db, statement(&self.db, sql, [job.into()])).await?;
        row.map_or(Ok(None), |row| row.try_get("", "job"))
    }

    /// Deletes one batch of what is too old or too much of `job`; returns how many rows.
    async fn prune(&self, job: &str) -> Result<u64, DbErr> {
        let (age, later) = match self.db.get_database_backend() {
            DbBackend::Sqlite => (format!("{SQLITE_NOW} - $2 * 1000"), "max"),
            _ => ("now() - $2 * interval '1 millisecond'".to_owned(), "greatest"),
        };
        let newest = |condition: &str| {
            format!(
                "(SELECT n.id FROM scheduler_runs n WHERE n.job = $1 {condition} ORDER BY n.started_at DESC, n.id DESC LIMIT 1)"
            )
        };
        // Without enough rows there is no row to begin from, and age alone decides.
        let sql = format!(
            "DELETE FROM scheduler_runs WHERE id IN (
                 SELECT r.id FROM scheduler_runs r
                  WHERE r.job = $1 AND r.id <> {newest} AND r.id <> coalesce({done}, {newest})
                    AND r.started_at < {later}({age}, coalesce((
                        SELECT n.started_at FROM scheduler_runs n WHERE n.job = $1
                         ORDER BY n.started_at DESC, n.id DESC LIMIT 1 OFFSET $3), {age}))
                  ORDER BY r.started_at LIMIT $4)",
            newest = newest(""),
            done = newest("AND n.status = 'done'"),
        );
        let keep_ms = i64::try_from(self.params.keep.as_millis()).unwrap_or(i64::MAX / 1_000);
        let values: [Value; 4] =
            [job.into(), keep_ms.into(), (i64::from(self.params.keep_rows.get()) - 1).into(), BATCH.into()];
        execute(&self.db, statement(&self.db, &sql, values)).await
    }
}

#[async_trait]
impl Job for PruneHistory {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let (mut pruned, mut job) = (0, String::new());
        while let Some(next) = self.job_after(&job).await.map_err(job_error)? {
            job = next;
            loop {
                if ctx.stop_requested().is_some() {
                    return Ok(Outcome::Interrupted { items: pruned });
                }
                match self.prune(&job).await.map_err(job_error)? {
                    0 => break,
                    rows => pruned += rows,
                }
            }
        }
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
