//! The scheduler inside an application that uses SeaORM: leases, cursors and the run history are in the application's database.
//!
//! `Database::connect` opens a separate pool for the store, without prepared statements, so that the store also works behind
//! PgBouncer. The application's own pool does not change.

pub mod order;

use std::{sync::Arc, time::Duration};

use billing_scheduler::{
    BoxError, Event, JobError, NewJob, Outcome, Scheduler, SystemClock, every, serde_json::json,
};
use billing_store::{Database, Pool, SeaOrmStore};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};

/// A job that uses the application's connection.
fn count_users(db: &DatabaseConnection) -> NewJob {
    let db = db.clone();
    let job = NewJob::new("count-users", every("1s"), move |_| {
        let db = db.clone();
        async move {
            let users = count(&db, "users").await.map_err(JobError::retry)?;
            Ok::<_, JobError>(Outcome::Done { items: 1, details: json!({ "users": users }) })
        }
    });
    job.configure(|spec| spec.run_at_start = true)
}

/// Runs the job three times in the database at `url`, and returns the number of completed runs in the history.
///
/// # Errors
/// The database cannot be opened, or it rejects a statement.
pub async fn run_three_times(url: &str) -> Result<i64, BoxError> {
    let db = sea_orm::Database::connect(url).await?;
    db.execute_unprepared("CREATE TABLE IF NOT EXISTS users (id bigint PRIMARY KEY)").await?;
    // Creates the scheduler's tables, all of which begin with `scheduler_`, next to the application's own.
    billing_store::migrate(&db).await?;

    let database = Database::new(url.parse()?);
    let pool = database.connect(Pool::Shared).await?;
    let lease = Duration::from_secs(10);
    let store = SeaOrmStore::new(pool, database, "my-application", lease, Arc::new(SystemClock));
    let scheduler = Scheduler::builder().store(store).with_job(count_users(&db)).start()?;
    let mut events = scheduler.events();
    let three_runs = async {
        let mut runs = 0;
        while runs < 3 {
            runs += usize::from(matches!(events.next().await, Some(Event::Finished(_))));
        }
    };
    scheduler.run_until(three_runs).await;
    Ok(count(&db, "scheduler_runs WHERE status = 'done'").await?)
}

async fn count(db: &DatabaseConnection, from: &str) -> Result<i64, sea_orm::DbErr> {
    let sql = format!("SELECT count(*) AS n FROM {from}");
    let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), sql)).await?;
    row.ok_or_else(|| sea_orm::DbErr::RecordNotFound("a count".to_owned()))?.try_get("", "n")
}
