//! The scheduler inside an application that uses SeaORM: its jobs' leases, cursors and history are in its own database.
//!
//! The store has a pool of its own, opened by `Database::connect`: without prepared statements, so that it also works behind
//! PgBouncer. The application's pool stays as it is.

use std::{env, error::Error, sync::Arc, time::Duration};

use async_trait::async_trait;
use billing_daemon::{
    database::{Database, Pool},
    store::SeaOrmStore,
};
use billing_scheduler::{
    Job, JobContext, JobError, JobSpec, Outcome, Registry, Schedule, Scheduler, SystemClock, serde_json::json,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use serde::Deserialize;
use tokio::time::interval;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Works with the application's own connection.
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

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("DATABASE_URL")?;
    let db = sea_orm::Database::connect(&url).await?;
    // The tables of the scheduler come with all of ours.
    migration::up(&db, None).await?;

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

    // A run that takes longer than its lease keeps it if something renews it.
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
    println!("{} runs in the database", count(&db, "scheduler_runs WHERE status = 'done'").await?);
    Ok(())
}

async fn count(db: &DatabaseConnection, from: &str) -> Result<i64, sea_orm::DbErr> {
    let sql = format!("SELECT count(*) AS n FROM {from}");
    let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), sql)).await?;
    row.ok_or_else(|| sea_orm::DbErr::RecordNotFound("a count".to_owned()))?.try_get("", "n")
}
