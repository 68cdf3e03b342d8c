//! The cost of one lease cycle on a database, and of the control poll that a daemon sends each second:
//! `cargo run --release -p billing-tools -- bench-lease-cycle [--cycles 500] [--database postgres|sqlite]`.
//!
//! A lease cycle is the scheduler's calls of its store for one run: the claim, the row of the history with the cursor, and the
//! release. The run itself takes no time here.

use std::{sync::Arc, time::Duration};

use billing_scheduler::{Claim, Clock, JobState, RunCause, RunRecord, RunStatus, Store, SystemClock};
use billing_store::{Database, Pool, SeaOrmStore};
use chrono::TimeDelta;
use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::database;
use crate::Engine;

/// Measure lease cycles of a job
#[derive(Args)]
pub(super) struct BenchLeaseCycleArgs {
    /// Number of measured lease cycles
    #[arg(long, default_value_t = 500)]
    cycles: u32,
    /// Database of the job
    #[arg(long, value_enum, default_value_t = Engine::Postgres)]
    database: Engine,
}

/// How long each of several steps took, in each round.
#[derive(Default)]
struct Times {
    claim: Vec<Duration>,
    record: Vec<Duration>,
    release: Vec<Duration>,
    cycle: Vec<Duration>,
    control_poll: Vec<Duration>,
}

pub(super) async fn run(args: &BenchLeaseCycleArgs) -> serde_json::Value {
    let db = self::database(args.database).await;
    let database = Database::new(db.url.parse().expect("the harness has a valid URL"));
    let pool = Box::pin(database.connect(Pool::Shared)).await.expect("the database answers");
    let store = SeaOrmStore::new(pool, database, "bench", Duration::from_secs(10), Arc::new(SystemClock));
    // The first ones open connections and fill caches.
    measure(&store, 50).await;
    let times = measure(&store, args.cycles).await;
    json!({
            "database": args.database.name(),
            "cycles": args.cycles,
            "cycle_ms": quantiles(times.cycle),
            "claim_ms": quantiles(times.claim),
            "record_ms": quantiles(times.record),
            "release_ms": quantiles(times.release),
            "control_poll_ms": quantiles(times.control_poll),
    })
}

async fn measure(store: &SeaOrmStore, cycles: u32) -> Times {
    let mut times = Times::default();
    let known = store.poll(None).await.expect("the store answers").changed.map(|state| state.revision);
    for _ in 0..cycles {
        let began = Instant::now();
        let now = SystemClock.now();
        let Claim::Held(lease) = store.acquire("bench", now - TimeDelta::days(1)).await.expect("a claim")
        else {
            panic!("there is no other holder");
        };
        let claimed = Instant::now();
        let scheduled_at = lease.state.cursor + TimeDelta::seconds(1);
        let run = RunRecord {
            attempt: 1,
            fencing_token: lease.fencing_token,
            items: 1,
            ..RunRecord::new("bench", scheduled_at, RunStatus::Done, RunCause::Schedule, now)
        };
        store.record(Some(&lease), &run, &JobState::at(scheduled_at)).await.expect("it is recorded");
        let recorded = Instant::now();
        store.release(&lease).await.expect("it is released");
        let released = Instant::now();
        assert_eq!(
            store.poll(known).await.expect("the store answers").changed,
            None,
            "there are no requests"
        );
        times.claim.push(claimed - began);
        times.record.push(recorded - claimed);
        times.release.push(released - recorded);
        times.cycle.push(released - began);
        times.control_poll.push(released.elapsed());
    }
    times
}

/// The median and the 99th percentile, in milliseconds.
fn quantiles(mut times: Vec<Duration>) -> serde_json::Value {
    times.sort_unstable();
    let quantile = |share: usize| {
        let place = (times.len().saturating_sub(1) * share).div_ceil(100);
        times.get(place).map(|time| (time.as_secs_f64() * 1e5).round() / 1e2)
    };
    json!({ "p50": quantile(50), "p99": quantile(99) })
}
