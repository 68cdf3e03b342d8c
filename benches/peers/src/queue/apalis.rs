//! apalis with its backends for PostgreSQL and SQLite.

use std::time::{Duration, SystemTime};

use apalis::prelude::{
    BackendExt as _, BoxDynError, ParallelizeExt as _, Strategy, TaskBuilder, TaskSink, WorkerBuilder,
};
use apalis_core::backend::finalize::Durable;
use apalis_postgres::PostgresStorage;
use apalis_sqlite::SqliteStorage;
use futures_util::stream::{self, StreamExt as _};
use tokio::{runtime::Handle, sync::oneshot, task::JoinHandle};

use super::Queue;
use crate::{database::TestDatabase, starts::record};

/// The number of jobs that the worker claims at once.
const BATCH: usize = 1_000;
/// How often the worker polls in addition to its notifications.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub(super) struct Apalis<'a, S> {
    database: &'a TestDatabase,
    storage: S,
    /// As another process has it.
    elsewhere: S,
    worker: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    /// The query for the number of finished jobs.
    finished: &'static str,
}

async fn run(job: u64) -> Result<(), BoxDynError> {
    record(job);
    Ok(())
}

/// Starts a worker of `$backend`. It is not a function, whose bounds on the types of apalis would be longer than this.
macro_rules! work {
    ($database:expr, $storage:expr, $elsewhere:expr, $backend:expr, $finished:literal) => {{
        let worker = WorkerBuilder::new("peers").backend($backend).parallelize(tokio::spawn).build(run);
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = Handle::current();
        // The compiler cannot prove that this future is `Send`, so it has its own thread; its jobs run on the runtime.
        let worker = tokio::task::spawn_blocking(move || {
            runtime.block_on(async move {
                tokio::select! {
                    ended = worker.run() => ended.expect("the worker does not fail"),
                    _ = stopped => {}
                }
            });
        });
        let (storage, elsewhere) = ($storage, $elsewhere);
        Apalis { database: $database, storage, elsewhere, worker, stop, finished: $finished }
    }};
}

pub(super) async fn start_postgres(database: &TestDatabase) -> Apalis<'_, PostgresStorage<u64>> {
    let pool = sqlx::PgPool::connect(database.url()).await.expect("the database answers");
    PostgresStorage::setup(&pool).await.expect("the tables are created");
    let config = apalis_postgres::Config::default().queue("peers").batch_size(BATCH).lock_tasks(false);
    let storage = PostgresStorage::<u64>::new(&pool).with_config(config.clone());
    let other = sqlx::PgPool::connect(database.url()).await.expect("the database answers");
    let elsewhere = PostgresStorage::<u64>::new(&other).with_config(config);
    let backend = storage.clone().with_pubsub().poll_with_strategy(Strategy::new().interval(POLL_INTERVAL));
    work!(database, storage, elsewhere, backend, "SELECT count(*) FROM apalis.jobs WHERE status = 'Done'")
}

pub(super) async fn start_sqlite(database: &TestDatabase) -> Apalis<'_, SqliteStorage<u64>> {
    let (pool, listener) = SqliteStorage::connect_with_callback(database.url()).expect("a valid URL");
    SqliteStorage::setup(&pool).await.expect("the tables are created");
    let config = apalis_sqlite::Config::default().queue("peers").batch_size(BATCH).lock_tasks(false);
    let storage = SqliteStorage::<u64>::new(&pool).with_config(config.clone());
    let other = sqlx::SqlitePool::connect(database.url()).await.expect("the database answers");
    let elsewhere = SqliteStorage::<u64>::new(&other).with_config(config);
    let strategy = Strategy::new().stream(listener.ready_chunks(BATCH)).interval(POLL_INTERVAL);
    let backend = storage.clone().poll_with_strategy(strategy);
    work!(database, storage, elsewhere, backend, "SELECT count(*) FROM Jobs WHERE status = 'Done'")
}

impl<S> Queue for Apalis<'_, S>
where
    S: TaskSink<u64, Durable, Error: std::fmt::Debug>,
{
    async fn add(&mut self, job: u64) {
        self.storage.push(job).await.expect("the database answers");
    }

    async fn add_elsewhere(&mut self, job: u64) {
        self.elsewhere.push(job).await.expect("the database answers");
    }

    async fn add_all(&mut self, jobs: Vec<u64>, due: Option<SystemTime>) {
        let Some(due) = due else {
            return self.storage.push_bulk(jobs).await.expect("the database answers");
        };
        let tasks = jobs.into_iter().map(|job| TaskBuilder::new(job).run_at_time(due).build());
        self.storage.push_all(stream::iter(tasks)).await.expect("the database answers");
    }

    async fn finished(&self, _: u64) -> u64 {
        self.database.count(self.finished).await
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        self.worker.await.expect("the worker does not panic");
    }
}
