//! The scheduler inside an application that uses SeaORM: leases, cursors and the run history are in the application's database.
//!
//! `Database::connect` opens a separate pool for the store, without prepared statements, so that the store also works behind
//! PgBouncer. The application's own pool does not change.

use std::{error::Error, sync::Arc, time::Duration};

use async_trait::async_trait;
use billing_scheduler::{
    Job, JobContext, JobError, JobSpec, Outcome, Registry, Schedule, Scheduler, SystemClock, serde_json::json,
};
use billing_store::{Database, Pool, SeaOrmStore};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use serde::Deserialize;
use tokio::time::interval;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// A job that uses the application's connection.
struct CountUsers {
    db: DatabaseConnection,
}

#[async_trait]
impl Job for CountUsers {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        let count = count(&self.db, "users").await.map_err(JobError::retry)?;
        Ok(Outcome::Done { items: 1, details: json!({ "users": count }) })
    }
}

/// Runs the job three times in the database at `url`, and returns the number of completed runs in the history.
///
/// # Errors
/// The database cannot be opened, or it rejects a statement.
pub async fn run_three_times(url: &str) -> Result<i64, Box<dyn Error>> {
    let db = sea_orm::Database::connect(url).await?;
    db.execute_unprepared("CREATE TABLE IF NOT EXISTS users (id bigint PRIMARY KEY)").await?;
    // Creates the scheduler's tables, all of which begin with `scheduler_`, next to the application's own.
    billing_store::migrate(&db).await?;

    let mut registry = Registry::new();
    let own = db.clone();
    registry.register("app.count-users", move |_: Nothing| CountUsers { db: own.clone() });

    let clock = Arc::new(SystemClock);
    let database = Database::new(url.parse()?);
    let pool = database.connect(Pool::Shared).await?;
    let lease = Duration::from_secs(10);
    let store = SeaOrmStore::new(pool, database, "my-application", lease, clock.clone());
    let mut every_second =
        JobSpec::new("count-users", "app.count-users", Schedule::every(Duration::from_secs(1))?);
    every_second.run_at_start = true;
    let scheduler = Scheduler::build(&registry, [(every_second, json!({}))], Arc::new(store), clock)?;

    // Renewal keeps the lease of a run that takes longer than the lease.
    let renewals = scheduler.clone();
    tokio::spawn(async move {
        let mut third = interval(lease / 3);
        loop {
            third.tick().await;
            renewals.renew_leases().await;
        }
    });
    let mut second = interval(Duration::from_secs(1));
    for _ in 0..3 {
        second.tick().await;
        scheduler.tick();
    }
    scheduler.drain(Duration::from_secs(5)).await;
    Ok(count(&db, "scheduler_runs WHERE status = 'done'").await?)
}

async fn count(db: &DatabaseConnection, from: &str) -> Result<i64, sea_orm::DbErr> {
    let sql = format!("SELECT count(*) AS n FROM {from}");
    let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), sql)).await?;
    row.ok_or_else(|| sea_orm::DbErr::RecordNotFound("a count".to_owned()))?.try_get("", "n")
}
