//! How long a job is not run after its daemon ended while another one is alive:
//! `cargo run --release -p billing-tools -- bench-takeover [--database postgres|sqlite] [--rounds 3] [--leases 10,3]`.
//!
//! A holder that is killed is replaced when its lease has expired, so that time follows the lease; it is killed at a random
//! moment between two renewals. One that holds nothing when it ends costs nothing but the way to the next scheduled time.

use std::{process::ExitCode, time::Duration};

use async_trait::async_trait;
use billing_daemon::Plugins;
use billing_scheduler::{Clock, Job, JobContext, JobError, Outcome, Registry, SystemClock};
use billing_test_support::{Db, Program, eventually, process::Signal};
use chrono::{DateTime, Utc};
use clap::Args;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::info;

use super::{database, number, this_program};
use crate::{DAEMON, Engine};

/// Long enough that no daemon claims the next scheduled time as soon as one is done.
const INTERVAL: Duration = Duration::from_secs(4);

/// Measure how long a job is not run after its daemon ended
#[derive(Args)]
pub(super) struct BenchTakeoverArgs {
    /// Database of the daemons
    #[arg(long, value_enum, default_value_t = Engine::Postgres)]
    database: Engine,
    /// Number of measurements of each kind
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Lease durations in seconds, separated by commas
    #[arg(long, value_delimiter = ',', default_values_t = [10, 3])]
    leases: Vec<u64>,
}

/// Logs its occurrence, and ends or never does.
struct LogOccurrence {
    ends: bool,
}

#[async_trait]
impl Job for LogOccurrence {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        info!("begins {}", ctx.occurrence.scheduled_at.to_rfc3339());
        if !self.ends {
            std::future::pending::<()>().await;
        }
        Ok(Outcome::done(1))
    }
}

fn kinds(registry: &mut Registry) {
    registry.register("bench.short", |_: Value| LogOccurrence { ends: true });
    registry.register("bench.endless", |_: Value| LogOccurrence { ends: false });
}

pub(super) fn daemon() -> ExitCode {
    billing_daemon::main(&Plugins::none().with(kinds))
}

pub(super) async fn run(args: &BenchTakeoverArgs) -> Value {
    let mut rng = StdRng::seed_from_u64(1);
    let mut killed = Vec::new();
    for lease in &args.leases {
        let mut took = Vec::new();
        for _ in 0..args.rounds {
            // A lease is renewed each third of its time.
            let until_kill =
                Duration::from_millis(rng.random_range(1_000 * lease / 3..1_000 * lease * 2 / 3));
            took.push(after_a_kill(&database(args.database).await, *lease, until_kill).await);
        }
        killed.push(json!({ "lease_s": lease, "s": seconds(took) }));
    }
    let (mut killed_idle, mut stopped) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        killed_idle.push(with_nothing_held(&database(args.database).await, Signal::KILL).await);
        stopped.push(with_nothing_held(&database(args.database).await, Signal::TERM).await);
    }
    json!({
        "database": args.database.name(),
        "rounds": args.rounds,
        "holder_killed": killed,
        "interval_s": INTERVAL.as_secs(),
        "late_after_idle_killed_s": seconds(killed_idle),
        "late_after_idle_stopped_s": seconds(stopped),
    })
}

fn program(db: &Db, jobs: &str) -> Program {
    Program::new(this_program())
        .env(DAEMON, "bench-takeover")
        .env("DATABASE_URL", &db.url)
        .file("jobs.toml", jobs)
}

/// From `kill -9` of the holder to the start of the same occurrence elsewhere.
async fn after_a_kill(db: &Db, lease: u64, until_kill: Duration) -> Duration {
    let jobs = format!(
        "[daemon]\nlease-ttl = \"{lease}s\"\n[[job]]\nname = \"endless\"\nkind = \"bench.endless\"\n\
         schedule = {{ every = \"365d\" }}\nrun-at-start = true\n"
    );
    let program = program(db, &jobs);
    let holder = program.start("run");
    let begun = holder.wait_for_line("begins ").await;
    let other = program.start("run");
    other.wait_for_line(" runs endless as ").await;
    sleep(until_kill).await;
    let killed = Instant::now();
    holder.signal(Signal::KILL);
    let again = other.wait_for_line("begins ").await;
    let took = killed.elapsed();
    assert_eq!(occurrence(&again), occurrence(&begun), "it is the same occurrence");
    took
}

/// From the next scheduled time of a job, after a signal to one of two daemons while it was not held, to its start.
async fn with_nothing_held(db: &Db, signal: Signal) -> Duration {
    let every = INTERVAL.as_secs();
    let jobs =
        format!("[[job]]\nname = \"short\"\nkind = \"bench.short\"\nschedule = {{ every = \"{every}s\" }}\n");
    let program = program(db, &jobs);
    let (one, other) = (program.start("run"), program.start("run"));
    one.wait_for_line(" runs short as ").await;
    other.wait_for_line(" runs short as ").await;
    let free =
        "SELECT count(*) AS n FROM scheduler_jobs AS state JOIN scheduler_runs AS run ON run.job = state.job
                 WHERE state.job = 'short' AND state.holder IS NULL";
    eventually("it is done, and the lease is free", async || (number(db, free).await > 0).then_some(()))
        .await;
    let seen = other.lines_with("begins ").len();
    one.signal(signal);
    let began = other.wait_for_lines("begins ", seen + 1).await;
    let now = SystemClock.now();
    let at: DateTime<Utc> = occurrence(&began).parse().expect("a scheduled time");
    (now - at).to_std().expect("a run begins when it is due")
}

/// The scheduled time in a line of [`LogOccurrence`].
fn occurrence(line: &str) -> &str {
    line.rsplit("begins ").next().expect("a line has an end")
}

/// The median and the longest.
fn seconds(mut took: Vec<Duration>) -> Value {
    took.sort_unstable();
    let rounded = |took: &Duration| (took.as_secs_f64() * 1e3).round() / 1e3;
    json!({ "median": took.get(took.len() / 2).map(rounded), "max": took.last().map(rounded) })
}
