//! billing-scheduler with the store of billing-store.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use billing_scheduler::{NewQueuedJob, QueueJob, QueueTime, RunningScheduler, Scheduler, SystemClock};
use billing_store::{Database, Pool, SeaOrmStore};
use serde_json::json;

use super::Queue;
use crate::{database::TestDatabase, starts::record};

const KIND: &str = "peers";

pub(super) struct Billing<'a> {
    database: &'a TestDatabase,
    scheduler: RunningScheduler,
    /// As another process has it: its worker is not this one.
    elsewhere: Scheduler,
}

pub(super) async fn start(database: &TestDatabase) -> Billing<'_> {
    let application = sea_orm::Database::connect(database.url()).await.expect("the database answers");
    billing_store::migrate(&application).await.expect("the tables are created");
    let store = store(database, "peers").await;
    let job = QueueJob::new(KIND, |_, n: u64| async move { record(n) }).concurrency(1_000);
    let scheduler = Scheduler::builder().store(store).with_queue_job(job).start().expect("the kind is valid");
    let elsewhere = Scheduler::builder().store(self::store(database, "elsewhere").await).build();
    Billing { database, scheduler, elsewhere: elsewhere.expect("no job is invalid") }
}

async fn store(database: &TestDatabase, holder: &str) -> SeaOrmStore {
    let connect = Database::new(database.url().parse().expect("a valid URL"));
    let pool = connect.connect(Pool::Shared).await.expect("the database answers");
    SeaOrmStore::new(pool, connect, holder, Duration::from_secs(30), Arc::new(SystemClock))
}

impl Queue for Billing<'_> {
    async fn add(&mut self, job: u64) {
        self.scheduler.enqueue(KIND, job).await.expect("the store answers");
    }

    async fn add_elsewhere(&mut self, job: u64) {
        self.elsewhere.enqueue(KIND, job).await.expect("the store answers");
    }

    async fn add_all(&mut self, jobs: Vec<u64>, due: Option<SystemTime>) {
        let time = due.map(|due| QueueTime::At(due.into()));
        let jobs: Vec<_> = jobs
            .into_iter()
            .map(|job| {
                let new = NewQueuedJob::new(KIND, json!(job));
                NewQueuedJob { time: time.unwrap_or(new.time), ..new }
            })
            .collect();
        self.scheduler.enqueue_all(&jobs).await.expect("the store answers");
    }

    async fn finished(&self, _: u64) -> u64 {
        self.database.count("SELECT count(*) FROM scheduler_runs WHERE status = 'done'").await
    }

    async fn stop(self) {
        self.scheduler.shutdown(Duration::from_secs(1)).await;
    }
}
