//! How long nobody does a job whose daemon has ended while another one is there:
//! `cargo run --release -p e2e --bin bench-takeover -- [--database postgres|sqlite] [--rounds 3] [--leases 10,3]`.
//!
//! A holder that is killed is replaced when its lease has expired, so that time follows the lease; it is killed at a random
//! moment between two renewals. One that holds nothing when it ends costs nothing but the way to the next scheduled time.

use std::{env, process::ExitCode, time::Duration};

use async_trait::async_trait;
use billing_daemon::Plugins;
use billing_scheduler::{Clock, Job, JobContext, JobError, Outcome, Registry, SystemClock};
use chrono::{DateTime, Utc};
use clap::{Parser, ValueEnum};
use e2e::{Db, Program, eventually, process::Signal};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sea_orm::{ConnectionTrait, Statement};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::info;

/// Set for a process that is a daemon.
const DAEMON: &str = "BENCH_DAEMON";

/// Far enough apart that nobody claims the next scheduled time as soon as one is done.
const INTERVAL: Duration = Duration::from_secs(4);

/// Measures how long a job is left alone.
#[derive(Parser)]
struct Cli {
    /// On which database.
    #[arg(long, value_enum, default_value_t = Kind::Postgres)]
    database: Kind,
    /// How often each is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long a lease lasts, in seconds; several are separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 3])]
    leases: Vec<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Postgres,
    Sqlite,
}

/// Says which occurrence it is, and ends or never does.
struct Say {
    ends: bool,
}

#[async_trait]
impl Job for Say {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        info!("begins {}", ctx.occurrence.scheduled_at.to_rfc3339());
        if !self.ends {
            std::future::pending::<()>().await;
        }
        Ok(Outcome::done(1))
    }
}

fn kinds(registry: &mut Registry) {
    registry.register("bench.short", |_: Value| Say { ends: true });
    registry.register("bench.endless", |_: Value| Say { ends: false });
}

fn main() -> ExitCode {
    if env::var_os(DAEMON).is_some() {
        return billing_daemon::main(&Plugins::none().with(kinds));
    }
    let cli = Cli::parse();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    println!("{}", runtime.block_on(measure(&cli)));
    ExitCode::SUCCESS
}

async fn measure(cli: &Cli) -> Value {
    let mut rng = StdRng::seed_from_u64(1);
    let mut killed = Vec::new();
    for lease in &cli.leases {
        let mut took = Vec::new();
        for _ in 0..cli.rounds {
            // A lease is renewed each third of its time.
            let until_kill =
                Duration::from_millis(rng.random_range(1_000 * lease / 3..1_000 * lease * 2 / 3));
            took.push(after_a_kill(&db(cli.database).await, *lease, until_kill).await);
        }
        killed.push(json!({ "lease_s": lease, "s": seconds(took) }));
    }
    let (mut killed_idle, mut stopped) = (Vec::new(), Vec::new());
    for _ in 0..cli.rounds {
        killed_idle.push(with_nothing_held(&db(cli.database).await, Signal::KILL).await);
        stopped.push(with_nothing_held(&db(cli.database).await, Signal::TERM).await);
    }
    json!({
        "database": match cli.database { Kind::Postgres => "postgres", Kind::Sqlite => "sqlite" },
        "rounds": cli.rounds,
        "holder_killed": killed,
        "interval_s": INTERVAL.as_secs(),
        "late_after_idle_killed_s": seconds(killed_idle),
        "late_after_idle_stopped_s": seconds(stopped),
    })
}

async fn db(kind: Kind) -> Db {
    match kind {
        Kind::Postgres => Db::postgres().await,
        Kind::Sqlite => Db::sqlite().await,
    }
}

fn daemon(db: &Db, jobs: &str) -> Program {
    Program::new(env::current_exe().expect("a program knows where it is"))
        .env(DAEMON, "1")
        .env("DATABASE_URL", &db.url)
        .file("jobs.toml", jobs)
}

/// From `kill -9` of the holder to the start of the same occurrence elsewhere.
async fn after_a_kill(db: &Db, lease: u64, until_kill: Duration) -> Duration {
    let jobs = format!(
        "[daemon]\nlease-ttl = \"{lease}s\"\n[[job]]\nname = \"endless\"\nkind = \"bench.endless\"\n\
         schedule = {{ every = \"365d\" }}\nrun-at-start = true\n"
    );
    let program = daemon(db, &jobs);
    let holder = program.start("run");
    let begun = holder.says("begins ").await;
    let other = program.start("run");
    other.says(" runs endless as ").await;
    sleep(until_kill).await;
    let killed = Instant::now();
    holder.signal(Signal::KILL);
    let again = other.says("begins ").await;
    let took = killed.elapsed();
    assert_eq!(occurrence(&again), occurrence(&begun), "it is the same occurrence");
    took
}

/// From the next scheduled time of a job, after a signal to one of two daemons while nobody held it, to its start.
async fn with_nothing_held(db: &Db, signal: Signal) -> Duration {
    let every = INTERVAL.as_secs();
    let jobs =
        format!("[[job]]\nname = \"short\"\nkind = \"bench.short\"\nschedule = {{ every = \"{every}s\" }}\n");
    let program = daemon(db, &jobs);
    let (one, other) = (program.start("run"), program.start("run"));
    one.says(" runs short as ").await;
    other.says(" runs short as ").await;
    let free =
        "SELECT count(*) AS n FROM scheduler_jobs AS state JOIN scheduler_runs AS run ON run.job = state.job
                 WHERE state.job = 'short' AND state.holder IS NULL";
    eventually("it is done, and nobody holds it", async || (number(db, free).await > 0).then_some(())).await;
    let seen = other.said("begins ").len();
    one.signal(signal);
    let began = other.says_times("begins ", seen + 1).await;
    let now = SystemClock.now();
    let at: DateTime<Utc> = occurrence(&began).parse().expect("a scheduled time");
    (now - at).to_std().expect("a run begins when it is due")
}

/// The scheduled time in a line of [`Say`].
fn occurrence(line: &str) -> &str {
    line.rsplit("begins ").next().expect("a line has an end")
}

async fn number(db: &Db, sql: &str) -> i64 {
    let row = db.admin().query_one_raw(Statement::from_string(db.backend(), sql)).await;
    row.expect("the question is valid").expect("there is a row").try_get("", "n").expect("a number")
}

/// The median and the longest.
fn seconds(mut took: Vec<Duration>) -> Value {
    took.sort_unstable();
    let rounded = |took: &Duration| (took.as_secs_f64() * 1e3).round() / 1e3;
    json!({ "median": took.get(took.len() / 2).map(rounded), "max": took.last().map(rounded) })
}
