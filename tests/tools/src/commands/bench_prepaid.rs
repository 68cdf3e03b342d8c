//! The cost of a check of the prepaid policy and of its deliveries:
//! `cargo run --release -p billing-tools -- bench-prepaid --instances 1000000 --deliveries 10000`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use billing_jobs::{
    PREPAID_KIND, PrepaidParams,
    panel::Panel,
    prepaid::{Claim, DeliverParams, Drained, Evaluation, Mode, Prepaid, Which},
};
use billing_scheduler::{Claim as LeaseClaim, Store as _, SystemClock};
use billing_store::{Database, Pool, SeaOrmStore};
use billing_test_support::{Db, WebhookReceiver};
use chrono::DateTime;
use clap::Args;
use sea_orm::{DatabaseConnection, DbBackend};
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
    /// Number of events that are delivered to a receiver on this host, at most one for each wallet
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    deliveries: u32,
}

/// The secret of the receiver.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

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
    let peak = printed_peak_mib(&peak_memory()).round();
    let per_minute = deliver(&db, &pool, panel, args.deliveries).await;
    json!({
        "database": args.database.name(),
        "instances": args.instances,
        "wallets": wallets,
        "watched": last.checked,
        "first_ms": first.map(f64::round),
        "full_ms": median(full),
        "watched_ms": median(watched),
        "peak_mib": peak,
        "deliveries_per_minute": per_minute,
    })
}

/// How many events a minute a receiver on this host gets and confirms.
async fn deliver(db: &Db, pool: &DatabaseConnection, panel: Panel, number: u32) -> f64 {
    let (id, now) = match db.backend() {
        DbBackend::Sqlite => ("lower(hex(randomblob(16)))", "0"),
        _ => ("gen_random_uuid()", "now()"),
    };
    let body = json!({ "type": "billing.wallet.low", "data": { "organization": "x".repeat(36), "padding": "x".repeat(300) } });
    db.execute(&format!(
        "INSERT INTO billing_events (id, type, organization_id, endpoints, body, created_at)
         SELECT {id}, 'billing.wallet.low', id, 1, '{body}', {now} FROM organizations LIMIT {number};
         INSERT INTO billing_deliveries (event_id, endpoint, organization_id, needed, next_at)
         SELECT id, 'panel', organization_id, true, created_at FROM billing_events"
    ))
    .await;
    let receiver = WebhookReceiver::start(SECRET);
    let params = json!({ "endpoint": [{ "name": "panel", "kind": "webhook", "types": ["billing.*"], "needed": true,
                                        "url": receiver.url(), "secrets": [SECRET] }] });
    let endpoints: DeliverParams = serde_json::from_value(params).expect("an endpoint");
    let params = PrepaidParams { mode: Mode::Notify, ..PrepaidParams::default() };
    let prepaid = Prepaid::new(pool.clone(), panel, &params, Duration::from_hours(1))
        .with_endpoints(endpoints.endpoint.into());
    let began = Instant::now();
    let drained = prepaid.deliver(Which::All, None, &|| false).await.expect("the deliveries are made");
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    assert_eq!(drained, Drained { sent: number.into(), ..Drained::default() });
    (f64::from(number) / minutes).round()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2].round()
}
