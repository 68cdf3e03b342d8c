//! Queued jobs in a database: how many per second are added, run and recorded, and how late they start.

mod apalis;
mod billing;
mod graphile;

use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    database::TestDatabase,
    starts::{Lateness, Starts, now_us, quantile_ms, sleep_until, whole_second_after},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    BillingScheduler,
    Apalis,
    /// On PostgreSQL only
    GraphileWorker,
}

impl Engine {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().expect("no value is skipped").get_name().to_owned()
    }
}

/// The number of jobs in one batch.
const BATCH: u64 = 1_000;
/// How long a measurement may take. What has not run by then is lost.
const TIMEOUT: Duration = Duration::from_mins(2);

/// How long a worker may take to stop. After that it is left alone: its database is dropped.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How many jobs an engine adds, and runs and records, in a second.
#[derive(Clone, Serialize)]
pub(crate) struct Throughput {
    /// Added one after the other, each by one call.
    pub(crate) added_singly: f64,
    /// Added in batches of 1,000.
    pub(crate) added_in_batches: f64,
    /// Added in batches, run, and recorded as finished.
    pub(crate) finished: f64,
    pub(crate) lost: usize,
    pub(crate) repeated: usize,
}

/// How long a job that is due at once waits for its start while the worker is idle, in milliseconds, from the call that adds it.
#[derive(Clone, Serialize)]
pub(crate) struct StartLatency {
    /// The duration of that call.
    pub(crate) added_p50_ms: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) lost: usize,
    pub(crate) repeated: usize,
}

/// A queue whose worker runs, with the settings that its documentation recommends for many small jobs.
trait Queue {
    /// Adds the job with this number, due now.
    async fn add(&mut self, job: u64);

    /// Adds a job as a process does that does not run the worker.
    async fn add_elsewhere(&mut self, job: u64);

    /// Adds jobs in one call.
    async fn add_all(&mut self, jobs: Vec<u64>, due: Option<SystemTime>);

    /// The number of the `added` jobs that are recorded as finished.
    async fn finished(&self, added: u64) -> u64;

    async fn stop(self);
}

/// Measures `jobs` jobs in batches, after a twentieth of them one by one.
pub(crate) async fn throughput(engine: Engine, database: &TestDatabase, jobs: u64) -> Throughput {
    match engine {
        Engine::BillingScheduler => measure(billing::start(database).await, jobs).await,
        Engine::Apalis if database.is_sqlite() => measure(apalis::start_sqlite(database).await, jobs).await,
        Engine::Apalis => measure(apalis::start_postgres(database).await, jobs).await,
        Engine::GraphileWorker => measure(graphile::start(database).await, jobs).await,
    }
}

/// Measures how late `jobs` jobs start that were added before and are due at one instant.
pub(crate) async fn lateness(engine: Engine, database: &TestDatabase, jobs: u64) -> Lateness {
    match engine {
        Engine::BillingScheduler => measure_lateness(billing::start(database).await, jobs).await,
        Engine::Apalis if database.is_sqlite() => {
            measure_lateness(apalis::start_sqlite(database).await, jobs).await
        }
        Engine::Apalis => measure_lateness(apalis::start_postgres(database).await, jobs).await,
        Engine::GraphileWorker => measure_lateness(graphile::start(database).await, jobs).await,
    }
}

/// Measures how long each of `jobs` jobs waits that an idle worker gets, one after the other, from this process or from another one.
pub(crate) async fn start_latency(
    engine: Engine,
    database: &TestDatabase,
    jobs: u64,
    elsewhere: bool,
) -> StartLatency {
    match engine {
        Engine::BillingScheduler => {
            measure_start_latency(billing::start(database).await, jobs, elsewhere).await
        }
        Engine::Apalis if database.is_sqlite() => {
            measure_start_latency(apalis::start_sqlite(database).await, jobs, elsewhere).await
        }
        Engine::Apalis => {
            measure_start_latency(apalis::start_postgres(database).await, jobs, elsewhere).await
        }
        Engine::GraphileWorker => {
            measure_start_latency(graphile::start(database).await, jobs, elsewhere).await
        }
    }
}

async fn measure(mut queue: impl Queue, jobs: u64) -> Throughput {
    let single = jobs / 20;
    let all = single + jobs;
    let starts = Starts::begin(usize::try_from(all).expect("a number of jobs"));
    let began = Instant::now();
    for job in 0..single {
        queue.add(job).await;
    }
    let one_by_one = began.elapsed();
    wait_until_finished(&queue, &starts, single).await;

    let numbers: Vec<u64> = (single..all).collect();
    let began = Instant::now();
    let add = async {
        for batch in numbers.chunks(usize::try_from(BATCH).expect("small")) {
            queue.add_all(batch.to_vec(), None).await;
        }
    };
    // What is not added is lost.
    let _ = timeout(TIMEOUT, add).await;
    let added = began.elapsed();
    wait_until_finished(&queue, &starts, all).await;
    let finished = began.elapsed();
    // What starts a second time would start now.
    sleep(Duration::from_millis(300)).await;
    stop(queue).await;
    let rate = |count: u64, time: Duration| (count as f64 / time.as_secs_f64()).round();
    let Lateness { lost, repeated, .. } = starts.lateness(0);
    Throughput {
        added_singly: rate(single, one_by_one),
        added_in_batches: rate(jobs, added),
        finished: rate(jobs, finished),
        lost,
        repeated,
    }
}

async fn stop(queue: impl Queue) {
    if timeout(STOP_TIMEOUT, queue.stop()).await.is_err() {
        eprintln!("the worker did not stop within {} s", STOP_TIMEOUT.as_secs());
    }
}

/// Returns when the first `count` jobs have run and are recorded. The database is queried only after they have run.
async fn wait_until_finished(queue: &impl Queue, starts: &Starts, count: u64) {
    let is_over = async {
        while (starts.count() as u64) < count {
            sleep(Duration::from_millis(2)).await;
        }
        while queue.finished(count).await < count {
            sleep(Duration::from_millis(5)).await;
        }
    };
    // What is lost is counted.
    let _ = timeout(TIMEOUT, is_over).await;
}

async fn measure_start_latency(mut queue: impl Queue, jobs: u64, elsewhere: bool) -> StartLatency {
    let starts = Starts::begin(usize::try_from(jobs).expect("a number of jobs"));
    let (mut added_us, mut late_us) = (Vec::new(), Vec::new());
    // The worker listens, if it can.
    sleep(Duration::from_secs(2)).await;
    for job in 0..jobs {
        // The worker is idle again, and no poll of it is in step with the jobs.
        sleep(Duration::from_millis(50 + job * 37 % 100)).await;
        let began = now_us();
        if elsewhere {
            queue.add_elsewhere(job).await;
        } else {
            queue.add(job).await;
        }
        added_us.push(now_us().cast_signed() - began.cast_signed());
        let has_started = async {
            while starts.count() as u64 <= job {
                sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(TIMEOUT, has_started).await.is_err() {
            break;
        }
        late_us.extend(starts.started_us(job).map(|at| at.cast_signed() - began.cast_signed()));
    }
    stop(queue).await;
    let Lateness { lost, repeated, .. } = starts.lateness(0);
    added_us.sort_unstable();
    late_us.sort_unstable();
    StartLatency {
        added_p50_ms: quantile_ms(&added_us, 50),
        p50_ms: quantile_ms(&late_us, 50),
        p99_ms: quantile_ms(&late_us, 99),
        lost,
        repeated,
    }
}

async fn measure_lateness(mut queue: impl Queue, jobs: u64) -> Lateness {
    let starts = Starts::begin(usize::try_from(jobs).expect("a number of jobs"));
    let due_us = whole_second_after(Duration::from_secs(4 + jobs / 2_000));
    let due = SystemTime::UNIX_EPOCH + Duration::from_micros(due_us);
    let numbers: Vec<u64> = (0..jobs).collect();
    let add = async {
        for batch in numbers.chunks(usize::try_from(BATCH).expect("small")) {
            queue.add_all(batch.to_vec(), Some(due)).await;
        }
    };
    // What is not added is lost.
    let _ = timeout(TIMEOUT, add).await;
    if now_us() > due_us {
        eprintln!("the jobs were added {} ms after the instant", (now_us() - due_us) / 1_000);
    }
    sleep_until(due_us).await;
    wait_until_finished(&queue, &starts, jobs).await;
    stop(queue).await;
    starts.lateness(due_us)
}
