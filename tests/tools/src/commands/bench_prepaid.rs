//! The cost of a check of the prepaid policy: `cargo run --release -p billing-tools -- bench-prepaid --instances 1000000`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use billing_jobs::{
    PREPAID_KIND, PrepaidParams,
    panel::Panel,
    prepaid::{Claim, Evaluation, Prepaid},
};
use billing_scheduler::{Claim as LeaseClaim, Store as _, SystemClock};
use billing_store::{Database, Pool, SeaOrmStore};
use chrono::DateTime;
use clap::Args;
use serde_json::{Value, json};

use super::database;
use crate::{
    Engine,
    bench::{peak_memory, printed_peak_mib},
};

/// Measure a check of the prepaid policy
#[derive(Args)]
pub(super) struct BenchPrepaidArgs {
    /// Database of the fleet
    #[arg(long, value_enum, default_value_t = Engine::Postgres)]
    database: Engine,
    /// Number of instances, of which five share a wallet
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    instances: u32,
    /// Percentage of wallets that are low
    #[arg(long, value_name = "P", default_value_t = 2)]
    low: u32,
    /// Number of rounds, of which the median counts
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

pub(super) async fn run(args: &BenchPrepaidArgs) -> Value {
    let db = database(args.database).await;
    db.seed_ledger(args.instances, 1).await;
    // A balance that covers less than a day.
    let cents = match args.database {
        Engine::Sqlite => "10000",
        Engine::Postgres => "1.00",
    };
    let wallets = args.instances.div_ceil(5);
    db.execute(&format!(
        "UPDATE wallets SET balance = {cents} WHERE id IN (SELECT id FROM wallets ORDER BY id LIMIT {})",
        u64::from(wallets) * u64::from(args.low) / 100
    ))
    .await;
    if args.database == Engine::Postgres {
        db.execute("ANALYZE").await;
    }
    let database = Database::new(db.url.parse().expect("a valid URL"));
    let pool = Box::pin(database.connect(Pool::Shared)).await.expect("a connection");
    let panel = Panel::detect(&pool).await.expect("a panel");
    let store =
        SeaOrmStore::new(pool.clone(), database, "bench", Duration::from_mins(10), Arc::new(SystemClock));
    let LeaseClaim::Held(lease) = store.acquire(PREPAID_KIND, DateTime::UNIX_EPOCH).await.expect("a claim")
    else {
        panic!("no other process has the job")
    };
    let claim = Claim { job: PREPAID_KIND, fencing_token: lease.fencing_token };
    let (mut first, mut full, mut watched) = (None, Vec::new(), Vec::new());
    let mut last = Evaluation::default();
    for _ in 0..=args.rounds {
        // A process that has just started checks all organizations.
        let prepaid = Prepaid::new(pool.clone(), panel, &PrepaidParams::default(), Duration::from_hours(1));
        for times in [&mut full, &mut watched] {
            let began = Instant::now();
            last = prepaid.evaluate(claim, None, &|| false).await.expect("the check finishes");
            let ms = began.elapsed().as_secs_f64() * 1_000.0;
            if first.is_none() { first = Some(ms) } else { times.push(ms) }
        }
    }
    json!({
        "database": args.database.name(),
        "instances": args.instances,
        "wallets": wallets,
        "watched": last.checked,
        "first_ms": first.map(f64::round),
        "full_ms": median(full),
        "watched_ms": median(watched),
        "peak_mib": printed_peak_mib(&peak_memory()).round(),
    })
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2].round()
}
