//! The store in a file keeps the promises of a store and of a queue, and survives its process.

use std::{path::PathBuf, sync::Arc, time::Duration};

use billing_scheduler::{
    ManualClock, NewQueuedJob, QueueStore, RunFilter, RunRecord, Scheduler, Store, async_trait,
    chrono::DateTime,
    conformance::{Harness, QueueHarness, check_all, check_queue},
    every, run_due, serde_json,
};
use file_store::FileStore;

/// Two processes on one file, whose time a test moves.
struct TwoProcesses {
    _directory: tempfile::TempDir,
    path: PathBuf,
    clock: ManualClock,
}

impl TwoProcesses {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("scheduler.json");
        Self { _directory: directory, path, clock: ManualClock::at(DateTime::UNIX_EPOCH) }
    }

    fn store(&self, holder: &str) -> FileStore {
        FileStore::new(&self.path, holder, Arc::new(self.clock.clone()))
    }

    async fn history(&self, job: &str) -> Vec<RunRecord> {
        let filter = RunFilter { job: Some(job.to_owned()), ..RunFilter::default() };
        let rows = self.store("reader").runs(&filter).await.expect("the file is readable");
        rows.into_iter().map(|row| row.run).collect()
    }
}

#[async_trait]
impl Harness for TwoProcesses {
    fn stores(&self) -> (Arc<dyn Store>, Arc<dyn Store>) {
        (Arc::new(self.store("a")), Arc::new(self.store("b")))
    }

    async fn expire(&self, _job: &str) {
        self.clock.advance(Duration::from_secs(10));
    }

    async fn runs(&self, job: &str) -> u64 {
        self.history(job).await.len() as u64
    }
}

#[async_trait]
impl QueueHarness for TwoProcesses {
    fn stores(&self) -> (Arc<dyn QueueStore>, Arc<dyn QueueStore>) {
        (Arc::new(self.store("a")), Arc::new(self.store("b")))
    }

    async fn expire(&self, _kind: &str) {
        self.clock.advance(Duration::from_secs(10));
    }

    async fn runs(&self, kind: &str) -> Vec<RunRecord> {
        self.history(kind).await
    }
}

#[tokio::test]
async fn file_store_passes_conformance_suite() {
    check_all(&TwoProcesses::new()).await;
}

#[tokio::test]
async fn file_queue_passes_conformance_suite() {
    check_queue(&TwoProcesses::new()).await;
}

#[tokio::test]
async fn jobs_continue_after_restart() {
    let world = TwoProcesses::new();
    for _ in 0..2 {
        let builder = Scheduler::builder().clock(world.clock.clone()).store(world.store("process"));
        let scheduler = builder
            .job("hourly", every("1h"), |_| async {})
            .queue_job("mail", |_, ()| async {})
            .build()
            .expect("no job is invalid");
        run_due(&scheduler).await;
        world.clock.advance(Duration::from_hours(1));
        run_due(&scheduler).await;
        // It is due in the next process.
        let mail = NewQueuedJob::new("mail", serde_json::Value::Null);
        scheduler.enqueue_all(&[mail]).await.expect("it is added");
        drop(scheduler);
    }
    let times: Vec<_> =
        world.history("hourly").await.iter().map(|run| run.scheduled_at.timestamp()).collect();
    assert_eq!(times, [7_200, 3_600]);
    assert_eq!(world.history("mail").await.len(), 1);
}

#[test]
fn store_has_at_most_four_hundred_lines() {
    let lines = include_str!("../src/lib.rs").lines().count();
    assert!(lines <= 400, "{lines} lines, without the queue");
}
