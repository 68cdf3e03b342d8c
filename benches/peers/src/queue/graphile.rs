//! `graphile_worker` with the settings of the benchmark in its repository.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, TaskHandler, Worker, WorkerContext, WorkerOptions,
    WorkerUtils,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::Queue;
use crate::{database::TestDatabase, starts::record};

#[derive(Clone, Deserialize, Serialize)]
struct Peers {
    n: u64,
}

impl TaskHandler for Peers {
    const IDENTIFIER: &'static str = "peers";

    async fn run(self, _: WorkerContext) -> impl IntoTaskHandlerResult {
        record(self.n);
        Ok::<(), String>(())
    }
}

pub(super) struct Graphile<'a> {
    database: &'a TestDatabase,
    worker: Arc<Worker>,
    utils: WorkerUtils,
    task: JoinHandle<()>,
}

pub(super) async fn start(database: &TestDatabase) -> Graphile<'_> {
    let worker = WorkerOptions::default()
        .concurrency(500)
        .poll_interval(Duration::from_millis(5))
        .complete_job_batch_delay(Duration::from_millis(5))
        .local_queue(LocalQueueConfig::default().with_size(5_000))
        .listen_os_shutdown_signals(false)
        .schema("graphile_worker")
        .define_job::<Peers>()
        .database_url(database.url())
        .init()
        .await
        .expect("the database answers");
    let worker = Arc::new(worker);
    let utils = worker.create_utils();
    let running = Arc::clone(&worker);
    let task = tokio::spawn(async move { running.run().await.expect("the worker does not fail") });
    Graphile { database, worker, utils, task }
}

impl Queue for Graphile<'_> {
    async fn add(&mut self, job: u64) {
        self.utils.add_job(Peers { n: job }, JobSpec::default()).await.expect("the database answers");
    }

    async fn add_elsewhere(&mut self, job: u64) {
        // A notification of the database is what wakes its worker.
        self.add(job).await;
    }

    async fn add_all(&mut self, jobs: Vec<u64>, due: Option<SystemTime>) {
        let spec = JobSpec { run_at: due.map(Into::into), ..JobSpec::default() };
        let jobs: Vec<_> = jobs.into_iter().map(|n| (Peers { n }, &spec)).collect();
        self.utils.add_jobs(&jobs).await.expect("the database answers");
    }

    /// A finished job is deleted.
    async fn finished(&self, added: u64) -> u64 {
        added - self.database.count("SELECT count(*) FROM graphile_worker._private_jobs").await
    }

    async fn stop(self) {
        self.worker.request_shutdown();
        self.task.await.expect("the worker does not panic");
    }
}
