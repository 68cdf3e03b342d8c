//! Measures how late and how often jobs start, and the cost: `cargo bench -p billing-scheduler --bench dispatch -- [--jobs 1000,10000]
//! [--bursts 2] [--period 2] [--idle 10000] [--idle-seconds 3]
//! [--engines tokio,billing-scheduler,tokio-cron-scheduler,apalis-cron]`.
//!
//! Every job of a case is due at the same instants. One line of JSON per case: a burst, or jobs that are not due at all. Each case
//! runs in a separate process, one after the other, so that the growth of its memory does not depend on other cases. The lower
//! bound, `tokio`, is a loop that spawns a task for each job at each instant.

use std::{
    env, fs,
    process::Command,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use apalis_core::worker::builder::WorkerBuilder;
use apalis_cron::{CronScheduler, Tick};
use async_trait::async_trait;
use billing_scheduler::{
    Clock, Job, JobContext, JobError, JobSpec, MemoryStore, Outcome, Registry, Schedule, Scheduler,
    SystemClock,
    serde_json::{Value, json},
};
use tokio::{
    runtime::Builder,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

const ENGINES: [&str; 4] = ["tokio", "billing-scheduler", "tokio-cron-scheduler", "apalis-cron"];

/// The environment variable for the process of one case: the engine, the number of jobs, and whether they are idle.
const CASE: &str = "DISPATCH_CASE";

fn main() {
    let options = Options::read();
    if let Ok(text) = env::var(CASE) {
        let mut words = text.split(' ');
        let engine = words.next().expect("an engine");
        let jobs = words.next().and_then(|jobs| jobs.parse().ok()).expect("a number of jobs");
        case(engine, jobs, &options, words.next() == Some("idle"));
        return;
    }
    for jobs in &options.jobs {
        for engine in &options.engines {
            run_case(&format!("{engine} {jobs} burst"));
        }
    }
    for engine in options.engines.iter().filter(|_| options.idle > 0) {
        run_case(&format!("{engine} {} idle", options.idle));
    }
}

/// Runs one case in a new process with the same options.
fn run_case(case: &str) {
    let program = env::current_exe().expect("the path of this program is known");
    let status = Command::new(program).args(env::args_os().skip(1)).env(CASE, case).status();
    assert!(status.expect("this program starts again").success(), "case `{case}` failed");
}

struct Options {
    engines: Vec<String>,
    jobs: Vec<usize>,
    bursts: usize,
    period: i64,
    idle: usize,
    idle_seconds: u64,
}

impl Options {
    fn read() -> Self {
        let mut options = Self {
            engines: ENGINES.map(str::to_owned).to_vec(),
            jobs: vec![1_000],
            bursts: 2,
            period: 2,
            idle: 10_000,
            idle_seconds: 3,
        };
        // Cargo adds `--bench` automatically.
        let mut words = env::args().skip(1).filter(|word| word != "--bench");
        while let Some(key) = words.next() {
            let value = words.next().unwrap_or_else(|| panic!("{key} needs a value"));
            let number = || value.parse().unwrap_or_else(|_| panic!("{key} needs a number, not {value}"));
            match key.as_str() {
                "--engines" => options.engines = value.split(',').map(str::to_owned).collect(),
                "--jobs" => {
                    options.jobs =
                        value.split(',').map(|jobs| jobs.parse().expect("numbers of jobs")).collect();
                }
                "--bursts" => options.bursts = usize::try_from(number()).expect("a small number"),
                "--period" => options.period = number(),
                "--idle" => options.idle = usize::try_from(number()).expect("a small number"),
                "--idle-seconds" => options.idle_seconds = u64::try_from(number()).expect("a small number"),
                _ => panic!("unknown option {key}"),
            }
        }
        let unknown = options.engines.iter().find(|engine| !ENGINES.contains(&engine.as_str()));
        assert!(unknown.is_none(), "unknown engine {unknown:?}, known: {ENGINES:?}");
        options
    }
}

/// The observed starts and their lateness.
struct Starts {
    jobs: usize,
    period: i64,
    /// The first measured instant, in seconds; the maximum until it is known.
    first: AtomicI64,
    /// The lateness in microseconds plus one, of each job at each instant; zero without a start.
    late: Vec<AtomicU32>,
    doubled: AtomicU64,
}

impl Starts {
    fn new(jobs: usize, options: &Options) -> Arc<Self> {
        Arc::new(Self {
            jobs,
            period: options.period,
            first: AtomicI64::new(i64::MAX),
            late: (0..jobs * options.bursts).map(|_| AtomicU32::new(0)).collect(),
            doubled: AtomicU64::new(0),
        })
    }

    /// Records a start of job number `job`. Its scheduled time is the last multiple of the period: no start is a period late.
    fn start(&self, job: usize) {
        let now_us = now_us();
        let scheduled = now_us.div_euclid(self.period * 1_000_000) * self.period;
        let first = self.first.load(Ordering::Relaxed);
        if scheduled < first {
            return;
        }
        let Ok(burst) = usize::try_from((scheduled - first) / self.period) else { return };
        let Some(slot) = self.late.get(burst * self.jobs + job) else { return };
        let late = u32::try_from(now_us - scheduled * 1_000_000).unwrap_or(u32::MAX - 1);
        if slot.swap(late + 1, Ordering::Relaxed) != 0 {
            self.doubled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn case(engine: &str, jobs: usize, options: &Options, idle: bool) {
    let starts = Starts::new(jobs, options);
    // Due after years, or every few seconds.
    let text = if idle { "0 0 0 29 2 *".to_owned() } else { format!("*/{} * * * * *", options.period) };
    let resident = resident_mb();
    let runtime = Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let (cpu_s, seconds, rss_mb) = runtime.block_on(async {
        match engine {
            // Nothing is due, so the loop would only wait.
            "tokio" if idle => {}
            "tokio" => floor(&starts, options.period),
            "billing-scheduler" => ours(&starts, &text),
            "tokio-cron-scheduler" => tokio_cron(&starts, &text).await,
            _ => apalis(&starts, &text),
        }
        // Waits until every task sleeps.
        sleep(Duration::from_secs(if idle { 3 } else { 1 } + jobs as u64 / 20_000)).await;
        let first = now_us().div_euclid(1_000_000 * options.period) * options.period + options.period;
        if !idle {
            starts.first.store(first, Ordering::Relaxed);
        }
        let (cpu, began) = (cpu_time(), Instant::now());
        let length = if idle {
            Duration::from_secs(options.idle_seconds)
        } else {
            let bursts = i64::try_from(options.bursts).expect("a small number");
            let end_us = (first + bursts * options.period) * 1_000_000 - 100_000;
            Duration::from_micros(u64::try_from(end_us - now_us()).unwrap_or(0))
        };
        sleep(length).await;
        (
            cpu_time().saturating_sub(cpu).as_secs_f64(),
            began.elapsed().as_secs_f64(),
            resident_mb() - resident,
        )
    });
    runtime.shutdown_background();
    let mut late: Vec<u32> =
        starts.late.iter().filter_map(|slot| slot.load(Ordering::Relaxed).checked_sub(1)).collect();
    late.sort_unstable();
    let doubled = starts.doubled.load(Ordering::Relaxed);
    let expected = if idle { 0 } else { starts.late.len() };
    let quantile = |share: usize| {
        let place = (late.len().saturating_sub(1) * share).div_ceil(100);
        late.get(place).map(|us| f64::from(*us) / 1_000.0)
    };
    let round = |number: f64| (number * 1_000.0).round() / 1_000.0;
    let line = json!({
        "engine": engine,
        "case": if idle { "idle" } else { "burst" },
        "jobs": jobs,
        "fired": late.len() as u64 + doubled,
        "expected": expected,
        "lost": expected - late.len(),
        "doubled": doubled,
        "p50_ms": quantile(50),
        "p99_ms": quantile(99),
        "max_ms": quantile(100),
        "cpu_s_per_min": round(cpu_s * 60.0 / seconds),
        "rss_mb": round(rss_mb),
    });
    println!("{line}");
}

struct Start {
    starts: Arc<Starts>,
    job: usize,
}

#[async_trait]
impl Job for Start {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        self.starts.start(self.job);
        Ok(Outcome::done(1))
    }
}

fn floor(starts: &Arc<Starts>, period: i64) {
    let starts = Arc::clone(starts);
    tokio::spawn(async move {
        loop {
            let next_us = (now_us() / 1_000_000 / period + 1) * period * 1_000_000;
            sleep(Duration::from_micros(u64::try_from(next_us - now_us()).unwrap_or(0))).await;
            for job in 0..starts.jobs {
                let starts = Arc::clone(&starts);
                tokio::spawn(async move { starts.start(job) });
            }
        }
    });
}

fn ours(starts: &Arc<Starts>, text: &str) {
    let mut registry = Registry::new();
    let of_job = Arc::clone(starts);
    let made = AtomicUsize::new(0);
    registry.register("start", move |_: Value| Start {
        starts: Arc::clone(&of_job),
        job: made.fetch_add(1, Ordering::Relaxed),
    });
    let specs = (0..starts.jobs).map(|job| {
        let schedule = Schedule::cron(text, "UTC").expect("a cron text");
        (JobSpec::new(format!("job {job}"), "start", schedule), Value::Null)
    });
    let clock = Arc::new(SystemClock);
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let scheduler = Scheduler::build(&registry, specs, store, clock).expect("a known kind");
    tokio::spawn(async move {
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            second.tick().await;
            scheduler.tick();
        }
    });
}

async fn tokio_cron(starts: &Arc<Starts>, text: &str) {
    let scheduler = tokio_cron_scheduler::JobScheduler::new().await.expect("a scheduler");
    for job in 0..starts.jobs {
        let starts = Arc::clone(starts);
        let start = move |_, _| starts.start(job);
        let job = tokio_cron_scheduler::Job::new(text, start).expect("a cron text");
        scheduler.add(job).await.expect("a job");
    }
    scheduler.start().await.expect("a start");
    std::mem::forget(scheduler);
}

fn apalis(starts: &Arc<Starts>, text: &str) {
    for job in 0..starts.jobs {
        let schedule = cron::Schedule::from_str(text).expect("a cron text");
        let starts = Arc::clone(starts);
        let run = move |_: Tick| {
            starts.start(job);
            async {}
        };
        let worker =
            WorkerBuilder::new(format!("job {job}")).backend(CronScheduler::new(schedule)).build(run);
        tokio::spawn(worker.run());
    }
}

fn now_us() -> i64 {
    SystemClock.now().timestamp_micros()
}

/// Returns the processor time of this process.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Returns the resident memory of this process, in megabytes.
fn resident_mb() -> f64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u32 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages");
    f64::from(pages) * 4_096.0 / 1e6
}
