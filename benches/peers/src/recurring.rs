//! Recurring jobs that are all due at the same instants, without a database.

use std::{str::FromStr as _, time::Duration};

use apalis::prelude::WorkerBuilder;
use apalis_cron::{CronScheduler, Tick};
use billing_scheduler::{NewJob, RunningScheduler, Scheduler, cron};
use clap::ValueEnum;
use tokio::{
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use crate::starts::{Lateness, Starts, now_us, record, sleep_until, whole_second_after};

/// The seconds between two instants. A burst must end before the next one.
const PERIOD_S: u64 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// Tasks that sleep until the instant, without a scheduler: the lower bound
    Tokio,
    BillingScheduler,
    TokioCronScheduler,
    ApalisCron,
}

impl Engine {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().expect("no value is skipped").get_name().to_owned()
    }
}

/// A started scheduler, until it is stopped.
enum Running {
    Tasks(JoinSet<()>),
    Ours(RunningScheduler),
    TokioCron(tokio_cron_scheduler::JobScheduler),
    Workers(Vec<AbortHandle>),
}

/// Starts `jobs` jobs with one cron text in UTC, six fields.
async fn start(engine: Engine, jobs: usize, text: &str) -> Running {
    let numbers = 0..u64::try_from(jobs).expect("a number of jobs");
    match engine {
        Engine::Tokio => Running::Tasks(JoinSet::new()),
        Engine::BillingScheduler => {
            let builder = numbers.fold(Scheduler::builder(), |builder, n| {
                let schedule = cron(text).timezone("UTC");
                builder.with_job(NewJob::new(format!("job {n}"), schedule, move |_| async move { record(n) }))
            });
            Running::Ours(builder.start().expect("the jobs are valid"))
        }
        Engine::TokioCronScheduler => {
            let scheduler = tokio_cron_scheduler::JobScheduler::new().await.expect("a scheduler");
            for n in numbers {
                let job = tokio_cron_scheduler::Job::new(text, move |_, _| record(n)).expect("a cron text");
                scheduler.add(job).await.expect("a job");
            }
            scheduler.start().await.expect("a start");
            Running::TokioCron(scheduler)
        }
        Engine::ApalisCron => Running::Workers(
            numbers
                .map(|n| {
                    let schedule = cron::Schedule::from_str(text).expect("a cron text");
                    let run = move |_: Tick| {
                        record(n);
                        async {}
                    };
                    let worker = WorkerBuilder::new(format!("job {n}"))
                        .backend(CronScheduler::new(schedule))
                        .build(run);
                    tokio::spawn(worker.run()).abort_handle()
                })
                .collect(),
        ),
    }
}

impl Running {
    async fn stop(self) {
        match self {
            Self::Tasks(mut tasks) => tasks.shutdown().await,
            Self::Ours(scheduler) => drop(scheduler.shutdown(Duration::ZERO).await),
            Self::TokioCron(mut scheduler) => drop(scheduler.shutdown().await),
            Self::Workers(workers) => workers.iter().for_each(AbortHandle::abort),
        }
    }
}

/// Measures how late `jobs` jobs start that are due at one instant.
pub(crate) async fn lateness(engine: Engine, jobs: usize) -> Lateness {
    let mut running = start(engine, jobs, &format!("*/{PERIOD_S} * * * * *")).await;
    // Every job must have been seen by its scheduler before the instant, and an earlier instant may pass meanwhile.
    let lead = Duration::from_secs(2 + u64::try_from(jobs / 5_000).expect("small"));
    let period_us = PERIOD_S * 1_000_000;
    let due_us = whole_second_after(lead).div_ceil(period_us) * period_us;
    sleep_until(due_us - 1_000_000).await;
    let starts = Starts::begin(jobs);
    if let Running::Tasks(tasks) = &mut running {
        for n in 0..u64::try_from(jobs).expect("a number of jobs") {
            tasks.spawn(async move {
                sleep_until(due_us).await;
                record(n);
            });
        }
    }
    let end_us = due_us + period_us - 1_500_000;
    while starts.count() < jobs && now_us() < end_us {
        sleep(Duration::from_millis(20)).await;
    }
    // What starts a second time would start now.
    sleep(Duration::from_millis(300)).await;
    running.stop().await;
    starts.lateness(due_us)
}

/// Returns the growth of the resident memory of this process, in bytes per job that is due in years.
pub(crate) async fn memory_per_idle_job(engine: Engine, jobs: usize) -> f64 {
    let before = resident_bytes();
    let mut running = start(engine, jobs, "0 0 0 29 2 *").await;
    if let Running::Tasks(tasks) = &mut running {
        for n in 0..u64::try_from(jobs).expect("a number of jobs") {
            tasks.spawn(async move {
                sleep(Duration::from_hours(24 * 365)).await;
                record(n);
            });
        }
    }
    // Until every job waits.
    sleep(Duration::from_secs(3 + u64::try_from(jobs / 20_000).expect("small"))).await;
    let grown = resident_bytes() - before;
    running.stop().await;
    grown / jobs as f64
}

fn resident_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("this benchmark needs Linux");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    f64::from(pages.map_or(0_u32, |pages| pages)) * 4_096.0
}
