//! Queued jobs per second: `cargo run --release -p billing-tools -- bench-queue [--jobs 20000] [--database postgres|sqlite]`.

use std::{sync::Arc, time::Duration};

use billing_scheduler::{NewQueuedJob, QueueJob, Scheduler, SystemClock};
use billing_store::{Database, Pool, SeaOrmStore};
use clap::Args;
use serde_json::json;
use tokio::time::{Instant, sleep};

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
    /// Number of jobs that run at once
    #[arg(long, default_value_t = 1_000)]
    concurrency: u32,
    /// Database of the queue
    #[arg(long, value_enum, default_value_t = Engine::Postgres)]
    database: Engine,
}

pub(super) async fn run(args: &BenchQueueArgs) -> serde_json::Value {
    let db = self::database(args.database).await;
    let database = Database::new(db.url.parse().expect("the harness has a valid URL"));
    let pool = Box::pin(database.connect(Pool::Shared)).await.expect("the database answers");
    let store = SeaOrmStore::new(pool, database, "bench", Duration::from_secs(30), Arc::new(SystemClock));
    let job = QueueJob::new("bench", |_, _: u64| async {}).concurrency(args.concurrency);
    let builder = Scheduler::builder().store(store).with_queue_job(job);
    let scheduler = builder.start().expect("the job is valid");
    let jobs: Vec<_> = (0..args.jobs).map(|n| NewQueuedJob::new("bench", json!(n))).collect();
    let recorded = async |count: usize| {
        let sql = "SELECT count(*) AS n FROM scheduler_runs WHERE status = 'done'";
        while usize::try_from(number(&db, sql).await).is_ok_and(|runs| runs < count) {
            sleep(Duration::from_millis(20)).await;
        }
    };

    let single = jobs.len() / 20;
    let began = Instant::now();
    for n in 0..single {
        scheduler.enqueue("bench", n).await.expect("the store answers");
    }
    let one_by_one = began.elapsed();
    recorded(single).await;

    let began = Instant::now();
    for batch in jobs.chunks(BATCH) {
        assert_eq!(scheduler.enqueue_all(batch).await.expect("the store answers").len(), batch.len());
    }
    let enqueued = began.elapsed();
    recorded(single + jobs.len()).await;
    let total = began.elapsed();
    scheduler.run_until(async {}).await;
    let runs = number(&db, "SELECT count(*) AS n FROM scheduler_runs").await;
    assert_eq!(usize::try_from(runs), Ok(single + jobs.len()), "each job ran once");
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more precision")]
    let rate = |count: usize, time: Duration| (count as f64 / time.as_secs_f64()).round();
    json!({
        "database": args.database.name(),
        "jobs": jobs.len(),
        "concurrency": args.concurrency,
        "enqueued_singly_per_s": rate(single, one_by_one),
        "enqueued_in_batches_per_s": rate(jobs.len(), enqueued),
        "enqueued_executed_recorded_per_s": rate(jobs.len(), total),
    })
}
