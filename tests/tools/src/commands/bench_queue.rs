//! Queued jobs per second: `cargo run --release -p billing-tools -- bench-queue [--jobs 20000] [--database postgres|sqlite]`.

use std::{sync::Arc, time::Duration};

use billing_scheduler::{NewQueuedJob, Queue, QueueJob, SystemClock};
use billing_store::{Database, Pool, SeaOrmStore};
use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::{database, number};
use crate::Engine;

/// The number of jobs in one call.
const BATCH: usize = 1_000;

/// Measure jobs of the queue: enqueued, executed and recorded
#[derive(Args)]
pub(super) struct BenchQueueArgs {
    /// Number of measured jobs
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    /// Database of the queue
    #[arg(long, value_enum, default_value_t = Engine::Postgres)]
    database: Engine,
}

pub(super) async fn run(args: &BenchQueueArgs) -> serde_json::Value {
    let db = self::database(args.database).await;
    let database = Database::new(db.url.parse().expect("the harness has a valid URL"));
    let pool = Box::pin(database.connect(Pool::Shared)).await.expect("the database answers");
    let store = SeaOrmStore::new(pool, database, "bench", Duration::from_secs(30), Arc::new(SystemClock));
    let concurrency = u32::try_from(BATCH).expect("it is small");
    let queue = Queue::new(Arc::new(store), Arc::new(SystemClock))
        .job(QueueJob::new("bench", |_, _: u64| async {}).concurrency(concurrency));
    let jobs: Vec<_> = (0..args.jobs).map(|n| NewQueuedJob::new("bench", json!(n))).collect();

    let single = jobs.len() / 20;
    let began = Instant::now();
    for n in 0..single {
        queue.enqueue("bench", n).expect("it is JSON").await.expect("the store answers");
    }
    let one_by_one = began.elapsed();
    queue.run_due().await.expect("the store answers");

    let began = Instant::now();
    for batch in jobs.chunks(BATCH) {
        assert_eq!(queue.enqueue_all(batch).await.expect("the store answers").len(), batch.len());
    }
    let enqueued = began.elapsed();
    assert_eq!(queue.run_due().await.expect("the store answers"), jobs.len());
    let total = began.elapsed();
    let recorded = number(&db, "SELECT count(*) AS n FROM scheduler_runs WHERE status = 'done'").await;
    assert_eq!(usize::try_from(recorded), Ok(jobs.len() + single));
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more precision")]
    let rate = |count: usize, time: Duration| (count as f64 / time.as_secs_f64()).round();
    json!({
        "database": args.database.name(),
        "jobs": jobs.len(),
        "enqueued_singly_per_s": rate(single, one_by_one),
        "enqueued_in_batches_per_s": rate(jobs.len(), enqueued),
        "executed_and_recorded_per_s": rate(jobs.len(), total.saturating_sub(enqueued)),
        "enqueued_executed_recorded_per_s": rate(jobs.len(), total),
    })
}
