//! The workloads that two builds are compared by. A worker prepares one, then runs a round for each line that it reads.

use std::{
    fs,
    io::{Write as _, stdin, stdout},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use billing_scheduler::{
    Job, JobContext, JobError, JobSpec, MemoryStore, Outcome, Registry, Schedule, Scheduler, SystemClock,
    serde_json::Value,
};
use clap::ValueEnum;
use tokio::{
    process::Command,
    task::spawn_blocking,
    time::{interval, sleep},
};

use super::{
    Bench, Options, compare::Costs, fleet, ours::Ours, postgres::PostgresEngine, sqlite::SqliteEngine,
};
use crate::{DAEMON, Engine, faults::Proxy};
use billing_test_support::{Db, Postgres, Program, Running, eventually};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Bill one hour of each instance.
    Billing,
    /// Check the invariants of a billed fleet.
    Audit,
    /// Run the default jobs without work for ten seconds (PostgreSQL).
    Idle,
    /// Start jobs that are due in the same seconds (in memory).
    Dispatch,
}

/// How long an idle daemon is observed in each round.
const IDLE: Duration = Duration::from_secs(10);
/// How long jobs are dispatched in each round: two instants.
const DISPATCH: Duration = Duration::from_secs(4);

/// Runs a round of the workload for each line on standard input, and prints its costs as a line of JSON.
pub async fn work(workload: Workload, options: &Options) {
    match (workload, options.engine) {
        (Workload::Idle, _) => {
            let mut idle = Idle::start(options).await;
            serve(async |_| idle.round().await).await;
            idle.daemon.terminated().await.expect_code(0);
        }
        (Workload::Dispatch, _) => {
            dispatch(options.instances);
            serve(async |_| dispatched().await).await;
        }
        (_, Engine::Sqlite) => {
            fleet_rounds(workload, &mut SqliteEngine::seeded(options).await, options).await;
        }
        (_, Engine::Postgres) => {
            fleet_rounds(workload, &mut PostgresEngine::seeded(options).await, options).await;
        }
    }
}

async fn serve(mut round: impl AsyncFnMut(u32) -> Costs) {
    let mut number = 0;
    // Zero bytes are the end of the input.
    while spawn_blocking(|| stdin().read_line(&mut String::new()))
        .await
        .expect("reading cannot panic")
        .expect("requests are text")
        > 0
    {
        number += 1;
        let costs = round(number).await;
        println!("{}", serde_json::to_string(&costs).expect("numbers are always JSON"));
        stdout().flush().expect("the comparison reads");
    }
}

async fn fleet_rounds(workload: Workload, bench: &mut impl Bench, options: &Options) {
    let ours = Ours::new(options, bench.url());
    if workload == Workload::Audit {
        ours.bill(1).await;
    }
    serve(async |number| {
        bench.settle().await;
        let (server, children) = (bench.used().await.0, children_seconds());
        let seconds = if workload == Workload::Audit {
            audit(options, &bench.url()).await
        } else {
            ours.bill(number).await.seconds
        };
        let cpu = bench.used().await.0 - server + children_seconds() - children;
        costs([("seconds", seconds), ("cpu_seconds", cpu)])
    })
    .await;
}

/// Seconds of one audit of the database; a finding is no error of the benchmark.
async fn audit(options: &Options, url: &str) -> f64 {
    let clock = format!("SELECT {} AS now", fleet::as_of_micros(1));
    let began = Instant::now();
    let output = Command::new(&options.program)
        .args(["audit", "--json"])
        .env_clear()
        .envs([
            ("DATABASE_URL", url),
            ("BILLING_CLOCK", &clock),
            (DAEMON, "bench-billing"),
            ("LOG_LEVEL", "warn"),
        ])
        .kill_on_drop(true)
        .output()
        .await
        .expect("this program starts again");
    let finished = matches!(output.status.code(), Some(0 | 1));
    assert!(finished, "the audit failed: {}", String::from_utf8_lossy(&output.stderr));
    began.elapsed().as_secs_f64()
}

/// A daemon without work, behind a proxy that counts its round trips.
struct Idle {
    _db: Db,
    proxy: Proxy,
    daemon: Running,
}

impl Idle {
    async fn start(options: &Options) -> Self {
        let db = Db::postgres().await;
        let server = Postgres::server().port();
        let proxy = Proxy::start(server).await.expect("a port is free");
        let url = db.url.replace(&format!(":{server}/"), &format!(":{}/", proxy.port()));
        let program = Program::new(options.program.clone())
            .env(DAEMON, "bench-billing")
            .env("DATABASE_URL", &url)
            .file("jobs.toml", JOBS);
        let daemon = program.start("run");
        eventually("the daemon polls", async || (proxy.round_trips().len() > 5).then_some(())).await;
        // The work of the start is finished by then.
        sleep(Duration::from_secs(5)).await;
        Self { _db: db, proxy, daemon }
    }

    async fn round(&mut self) -> Costs {
        let _ = self.proxy.round_trips();
        let cpu = thread_seconds(&self.daemon.pid().to_string());
        sleep(IDLE).await;
        assert!(self.daemon.is_alive(), "the daemon ended");
        let cpu = thread_seconds(&self.daemon.pid().to_string()) - cpu;
        #[expect(clippy::cast_precision_loss, reason = "a few round trips a second")]
        let round_trips = self.proxy.round_trips().len() as f64;
        costs([("round_trips", round_trips), ("cpu_seconds", cpu)])
    }
}

/// Billing is due once an hour, so almost all that is observed are the polls of each second.
const JOBS: &str = r#"
[daemon]
panel-billing = "off"

[[job]]
name = "billing"
kind = "billing"
schedule = { every = "1h" }
"#;

struct Nothing;

#[async_trait]
impl Job for Nothing {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        Ok(Outcome::done(1))
    }
}

/// Starts a scheduler with this many jobs, all due every two seconds.
fn dispatch(jobs: u32) {
    let mut registry = Registry::new();
    registry.register("nothing", |_: Value| Nothing);
    let schedule = Schedule::cron("*/2 * * * * *", "UTC").expect("a valid cron expression");
    let specs =
        (0..jobs).map(|job| (JobSpec::new(format!("job {job}"), "nothing", schedule.clone()), Value::Null));
    let clock = Arc::new(SystemClock);
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let scheduler = Scheduler::build(&registry, specs, store, clock).expect("a registered kind");
    tokio::spawn(async move {
        let mut second = interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            scheduler.tick();
        }
    });
}

/// The costs of two instants in this process.
async fn dispatched() -> Costs {
    let cpu = thread_seconds("self");
    sleep(DISPATCH).await;
    costs([("cpu_seconds", thread_seconds("self") - cpu)])
}

fn costs<const N: usize>(costs: [(&str, f64); N]) -> Costs {
    costs.into_iter().map(|(metric, cost)| (metric.to_owned(), cost)).collect()
}

/// Processor time of all living threads of a process. Linux counts it in nanoseconds here, and in hundredths of a second elsewhere.
fn thread_seconds(process: &str) -> f64 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("the process runs on Linux");
    let nanoseconds = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|number| number.parse::<f64>().ok()).unwrap_or_default()
    };
    threads.flatten().map(nanoseconds).sum::<f64>() / 1e9
}

/// Processor time of the children of this process that have ended.
fn children_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("this is Linux");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name in parentheses").1.split(' ').collect();
    let ticks: f64 = fields[13..=14].iter().map(|field| field.parse::<f64>().expect("a number")).sum();
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100);
    ticks / f64::from(per_second)
}
