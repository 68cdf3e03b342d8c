//! A fault campaign for the queue: `cargo run --release -p billing-tools -- queue-faults --database postgres --jobs 10000 --seed 1`.
//!
//! Workers in separate processes run jobs that write one row each, in the transaction that finishes the job. Meanwhile the workers
//! are killed and suspended, and on PostgreSQL their connections are cut and answers to COMMIT are dropped.

use std::{
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use billing_scheduler::{
    JobContext, JobError, NewQueuedJob, Outcome, QueueJob, QueueStore, Retry, Scheduler, SystemClock,
};
use billing_store::{Database, Pool, SeaOrmStore, begin, queue};
use billing_test_support::{Db, Postgres};
use clap::Args;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rustix::process::{Pid, Signal, kill_process};
use sea_orm::{ConnectionTrait as _, DatabaseConnection};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{DAEMON, database, number, this_program};
use crate::{Engine, faults::Proxy};

const WORKERS: usize = 3;
/// The lifetime of a claim. A worker is suspended for longer.
const TTL: Duration = Duration::from_secs(3);
const SUSPENDED: Duration = Duration::from_millis(4_500);
/// The most time that a campaign may take.
const TIMEOUT: Duration = Duration::from_mins(10);
/// How long a worker runs before it ends in order, so that its end is tested as well.
const SHIFT: Duration = Duration::from_secs(20);

/// Run queued jobs while faults are injected, and count lost and repeated ones
#[derive(Args)]
pub(super) struct QueueFaultsArgs {
    /// Database of the queue
    #[arg(long, value_enum)]
    database: Engine,
    /// Number of jobs
    #[arg(long, default_value_t = 10_000)]
    jobs: i64,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) async fn run(args: &QueueFaultsArgs) -> ExitCode {
    let db = database(args.database).await;
    db.execute("CREATE TABLE effects (id text NOT NULL)").await;
    if args.database == Engine::Postgres {
        db.execute("GRANT SELECT, INSERT ON effects TO PUBLIC").await;
    }
    let proxy = match args.database {
        Engine::Sqlite => None,
        Engine::Postgres => Some(Proxy::start(Postgres::server().port()).await.expect("a port is free")),
    };
    let url = match &proxy {
        None => db.url.clone(),
        Some(proxy) => {
            let (server, own) = (format!(":{}/", Postgres::server().port()), format!(":{}/", proxy.port()));
            db.url.replacen(&server, &own, 1)
        }
    };
    let (_, store) = open(&db.url, "campaign").await.expect("the database answers");
    let mut rest = args.jobs;
    while rest > 0 {
        let jobs: Vec<_> = (0..rest.min(500)).map(|n| NewQueuedJob::new("effect", json!(n))).collect();
        rest -= i64::try_from(store.enqueue(&jobs).await.expect("the database answers").len())
            .expect("it is small");
    }
    let began = Instant::now();
    let injected = inject(&db, &url, proxy.as_ref(), args.seed).await;
    let count = async |sql: &str| number(&db, sql).await;
    let effects = count("SELECT count(*) AS n FROM effects").await;
    let distinct = count("SELECT count(DISTINCT id) AS n FROM effects").await;
    let unfinished = count("SELECT count(*) AS n FROM scheduler_queue WHERE finished_at IS NULL").await;
    let done = count("SELECT count(*) AS n FROM scheduler_runs WHERE status = 'done'").await;
    let runs = count("SELECT count(*) AS n FROM scheduler_runs").await;
    let claims = count("SELECT CAST(sum(fencing_token) AS bigint) AS n FROM scheduler_queue").await;
    let [kills, pauses, cuts] = injected;
    println!(
        "{}",
        json!({
            "database": args.database.name(), "jobs": args.jobs, "seed": args.seed,
            "seconds": began.elapsed().as_secs(), "kills": kills, "pauses": pauses, "cuts": cuts,
            "claims": claims, "runs": runs, "done": done,
            "lost": args.jobs - distinct, "executed_twice": effects - distinct, "unfinished": unfinished,
        })
    );
    let is_clean = (effects, distinct, unfinished, done) == (args.jobs, args.jobs, 0, args.jobs);
    if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Injects faults until every job is finished. Returns how many workers were killed and suspended, and how often connections were cut.
async fn inject(db: &Db, url: &str, proxy: Option<&Proxy>, seed: u64) -> [u64; 3] {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut workers: Vec<Child> = (0..WORKERS).map(|_| start(url)).collect();
    let mut suspended: Option<(usize, Instant)> = None;
    let (mut injected, began) = ([0; 3], Instant::now());
    while number(db, "SELECT count(*) AS n FROM scheduler_queue WHERE finished_at IS NULL").await > 0 {
        assert!(began.elapsed() < TIMEOUT, "the jobs are not finished after {TIMEOUT:?}");
        sleep(Duration::from_millis(rng.random_range(100..700))).await;
        for worker in &mut workers {
            if worker.try_wait().expect("its state is known").is_some() {
                *worker = start(url);
            }
        }
        if let Some((place, since)) = suspended
            && since.elapsed() >= SUSPENDED
        {
            signal(&workers[place], Signal::CONT);
            suspended = None;
        }
        let place = rng.random_range(0..WORKERS);
        match rng.random_range(0..4) {
            0 if suspended.is_none_or(|(paused, _)| paused != place) => {
                workers[place].kill().expect("it is our process");
                workers[place].wait().expect("it is our process");
                workers[place] = start(url);
                injected[0] += 1;
            }
            1 if suspended.is_none() => {
                signal(&workers[place], Signal::STOP);
                suspended = Some((place, Instant::now()));
                injected[1] += 1;
            }
            2 => {
                let Some(proxy) = proxy else { continue };
                proxy.cut();
                injected[2] += 1;
            }
            _ => {
                let Some(proxy) = proxy else { continue };
                proxy.lose_commits(3);
            }
        }
    }
    for worker in &mut workers {
        worker.kill().expect("it is our process");
        worker.wait().expect("it is our process");
    }
    injected
}

fn start(url: &str) -> Child {
    let mut worker = Command::new(this_program());
    worker.env(DAEMON, "queue-faults").env("DATABASE_URL", url).stdin(Stdio::piped());
    worker.spawn().expect("this program starts")
}

fn signal(worker: &Child, signal: Signal) {
    let pid = i32::try_from(worker.id()).ok().and_then(Pid::from_raw).expect("a process has an id");
    kill_process(pid, signal).expect("it is our process");
}

/// A worker, which ends with the campaign, also when that is killed.
pub(super) fn daemon() -> ExitCode {
    thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::abort();
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let url = std::env::var("DATABASE_URL").expect("the campaign sets it");
    runtime.block_on(async {
        // Its connections may be cut while they are opened.
        let (pool, store) = loop {
            if let Some(opened) = open(&url, &std::process::id().to_string()).await {
                break opened;
            }
            sleep(Duration::from_millis(100)).await;
        };
        let retry = Retry {
            max_attempts: u32::MAX,
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(1),
            jitter_percent: 50,
        };
        let job = QueueJob::new("effect", move |ctx: JobContext, n: u64| {
            let pool = pool.clone();
            async move { execute(&pool, &ctx, n).await }
        });
        let job = job.concurrency(12).retry(retry);
        let scheduler = Scheduler::builder().store(store).with_queue_job(job).start().expect("it is valid");
        sleep(SHIFT).await;
        scheduler.shutdown(Duration::from_secs(1)).await;
    });
    ExitCode::SUCCESS
}

async fn open(url: &str, holder: &str) -> Option<(DatabaseConnection, SeaOrmStore)> {
    let database = Database::new(url.parse().expect("the campaign has a valid URL"));
    let pool = Box::pin(database.connect(Pool::Shared)).await.ok()?;
    let own = Box::pin(database.connect(Pool::Shared)).await.ok()?;
    Some((pool, SeaOrmStore::new(own, database, holder, TTL, Arc::new(SystemClock))))
}

/// Writes one row in the transaction that finishes the job. Each twentieth job fails at first.
async fn execute(pool: &DatabaseConnection, ctx: &JobContext, n: u64) -> Result<Outcome, JobError> {
    sleep(Duration::from_millis(n % 40)).await;
    if n.is_multiple_of(20) && ctx.attempt == 1 {
        return Err(JobError::retry("it fails at first"));
    }
    let id = ctx.request_id.expect("a queued job has an id");
    let txn = begin(pool).await.map_err(JobError::retry)?;
    queue::finish_in(&txn, ctx).await?;
    txn.execute_unprepared(&format!("INSERT INTO effects VALUES ('{id}')")).await.map_err(JobError::retry)?;
    sleep(Duration::from_millis(n % 7)).await;
    txn.commit().await.map_err(JobError::retry)?;
    Ok(Outcome::done(1))
}
