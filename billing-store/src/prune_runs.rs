//! Keeps the history of runs bounded: removes what is too old, and what exceeds a number of rows of one job.

use std::{num::NonZeroU32, time::Duration};

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome};
use sea_orm::{DatabaseConnection, DbBackend, DbErr, Value};

use crate::{
    error_class::job_error,
    rows::millis,
    transaction::{SQLITE_NOW, execute, query_one, statement},
};

/// How many rows one transaction deletes, so that no other transaction waits for it.
const BATCH: i64 = 1_000;

/// A job that removes rows of the history of runs, which grows without limit otherwise. The newest row of each job stays, and so does
/// the newest with the status `done`.
///
/// ```
/// use billing_scheduler::{NewJob, daily};
/// use billing_store::PruneRuns;
///
/// fn prune_runs(pool: sea_orm::DatabaseConnection) -> NewJob {
///     NewJob::of("prune-runs", daily().at("03:30"), PruneRuns::new(pool))
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct PruneRuns {
    db: DatabaseConnection,
    keep: Duration,
    keep_rows: NonZeroU32,
}

impl PruneRuns {
    /// The default of [`PruneRuns::keep`]: 90 days.
    pub const KEEP: Duration = Duration::from_hours(90 * 24);
    /// The default of [`PruneRuns::keep_rows`].
    pub const KEEP_ROWS: NonZeroU32 = NonZeroU32::new(10_000).expect("ten thousand is not zero");

    /// Returns a job with the defaults. `db` is a pool that [`Database::connect`](crate::Database::connect) opened.
    pub fn new(db: DatabaseConnection) -> Self {
        Self { db, keep: Self::KEEP, keep_rows: Self::KEEP_ROWS }
    }

    /// Sets the age from which on rows are removed.
    pub fn keep(self, keep: Duration) -> Self {
        Self { keep, ..self }
    }

    /// Sets how many rows of each job stay at most.
    pub fn keep_rows(self, keep_rows: NonZeroU32) -> Self {
        Self { keep_rows, ..self }
    }

    /// Returns the first job by name after `job` that has rows.
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
        let keep_ms = millis(self.keep).min(i64::MAX / 1_000);
        let values: [Value; 4] =
            [job.into(), keep_ms.into(), (i64::from(self.keep_rows.get()) - 1).into(), BATCH.into()];
        execute(&self.db, statement(&self.db, &sql, values)).await
    }
}

#[async_trait]
impl Job for PruneRuns {
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
        Ok(Outcome::done(pruned))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use billing_scheduler::{NewJob, RunFilter, Scheduler, SystemClock, every, run_due};

    use super::*;
    use crate::{Database, Pool, SeaOrmStore};

    #[tokio::test]
    async fn newest_rows_of_job_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("jobs.db").display());
        let database = Database::new(url.parse().expect("valid"));
        let pool = database.connect(Pool::Shared).await.expect("opened");
        crate::migrate(&pool).await.expect("migrated");
        let prune = PruneRuns::new(pool.clone()).keep_rows(NonZeroU32::MIN);
        let store = SeaOrmStore::new(pool, database, "test", Duration::from_secs(10), Arc::new(SystemClock));
        let builder = Scheduler::builder().store(store).queue_job("mail", |_, ()| async {});
        let scheduler =
            builder.with_job(NewJob::of("prune", every("365d"), prune)).build().expect("valid jobs");
        for _ in 0..3 {
            scheduler.enqueue("mail", ()).await.expect("added");
            run_due(&scheduler).await;
        }

        let runs = async || scheduler.control("test").runs(&RunFilter::default()).await.expect("read");
        let newest = runs().await.swap_remove(0);
        assert_eq!(runs().await.len(), 3);
        let pruned = scheduler.run_once("prune", None).await.expect("it runs");
        assert_eq!(pruned.items, 2);
        let left = runs().await;
        assert_eq!(left.iter().map(|row| row.run.id).collect::<Vec<_>>(), [pruned.id, newest.run.id]);
    }
}
