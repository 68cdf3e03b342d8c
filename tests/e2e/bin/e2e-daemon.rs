//! The daemon under test: the one that ships, with a few kinds of jobs more that no customer needs.

use std::{process::ExitCode, time::Duration};

use async_trait::async_trait;
use billing_daemon::Plugins;
use billing_scheduler::{BlockingJob, Job, JobContext, JobError, Outcome, Registry};
use serde::Deserialize;
use tracing::info;

/// Longer than the shortest lease.
const BLOCKED: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Parameters whose validation takes the given time.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SlowParams {
    #[serde(rename = "validated-in-ms", deserialize_with = "slowly")]
    _validated_in_ms: u64,
}

fn slowly<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let milliseconds = u64::deserialize(deserializer)?;
    info!("validates for {milliseconds} ms");
    std::thread::sleep(Duration::from_millis(milliseconds));
    Ok(milliseconds)
}

/// Logs its occurrence.
struct Tick;

#[async_trait]
impl Job for Tick {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        info!("tick of {}", ctx.occurrence.scheduled_at);
        Ok(Outcome::done(1))
    }
}

/// Logs its start and never ends.
struct HangsForever;

#[async_trait]
impl Job for HangsForever {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        info!("hangs until the process ends");
        std::future::pending().await
    }
}

/// Logs its start and waits until it is cancelled.
struct WaitsForCancel;

#[async_trait]
impl Job for WaitsForCancel {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        info!("waits until it is cancelled");
        let reason = ctx.stopped().await;
        info!("cancelled: {reason}");
        Ok(Outcome::Interrupted { items: 3 })
    }
}

/// Fails without a retry.
struct Broken;

#[async_trait]
impl Job for Broken {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        Err(JobError::fatal("broken as designed"))
    }
}

/// Blocks every thread of the runtime for five seconds.
struct Block;

#[async_trait]
impl Job for Block {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        info!("blocks every thread");
        let threads = std::thread::available_parallelism().map_or(64, usize::from);
        for _ in 1..threads {
            tokio::spawn(async { std::thread::sleep(BLOCKED) });
        }
        std::thread::sleep(BLOCKED);
        info!("blocks no more");
        Ok(Outcome::done(1))
    }
}

/// Blocks every worker thread without end.
struct Hang;

#[async_trait]
impl Job for Hang {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        info!("hangs from now on");
        // What a thread spawned last waits for that thread, and no other takes it: so one more.
        for _ in 0..tokio::runtime::Handle::current().metrics().num_workers() {
            tokio::spawn(async { hang() });
        }
        hang()
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Panics with a secret in its message.
struct LeaksSecret;

#[async_trait]
impl Job for LeaksSecret {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        panic!("cannot continue with {}", std::env::var("DATABASE_URL").unwrap_or_default())
    }
}

/// Blocks a thread of the pool for blocking jobs without limit.
struct Stuck;

impl BlockingJob for Stuck {
    fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        info!("stuck from now on");
        loop {
            std::thread::park();
        }
    }
}

fn kinds(registry: &mut Registry) {
    registry.register("test.tick", |_: Nothing| Tick);
    registry.register("test.slow-params", |_: SlowParams| Tick);
    registry.register("test.waits-for-cancel", |_: Nothing| WaitsForCancel);
    registry.register("test.broken", |_: Nothing| Broken);
    registry.register("test.block", |_: Nothing| Block);
    registry.register("test.hang", |_: Nothing| Hang);
    registry.register("test.hangs-forever", |_: Nothing| HangsForever);
    registry.register("test.leaks-secret", |_: Nothing| LeaksSecret);
    registry.register_blocking("test.stuck", |_: Nothing| Stuck);
}

fn main() -> ExitCode {
    // Unless a test wants to see what the program does that ships.
    if std::env::var_os("E2E_AS_SHIPPED").is_none() {
        billing_jobs::fault_injection::enable();
    }
    billing_daemon::main(&Plugins::none().with(kinds))
}
