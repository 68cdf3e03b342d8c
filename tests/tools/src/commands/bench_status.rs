//! How long operators and monitoring wait over a large fleet: the commands `status` and `charges explain`, from their start to their end,
//! and one request of the metrics: `cargo run --release -p billing-tools -- bench-status --database sqlite --instances 1000000`.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use billing_test_support::Db;
use clap::Args;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};

use super::{database, shipped_or_this};
use crate::Engine;

/// Measure the commands and the metrics that report on a large fleet
#[derive(Args)]
pub(super) struct BenchStatusArgs {
    /// Database of the fleet
    #[arg(long, value_enum, default_value_t = Engine::Postgres)]
    database: Engine,
    /// Number of instances, of which five share a wallet
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    instances: u32,
    /// Number of charges of each instance
    #[arg(long, value_name = "H", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    hours: u32,
    /// Number of times that each is measured
    #[arg(long, value_name = "R", default_value_t = 20, value_parser = clap::value_parser!(u32).range(5..))]
    requests: u32,
    /// Program to measure: a release build of billing-daemon; by default this program
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Billing is due in a year: nothing changes during the measurement.
const JOBS: &str = r#"
[http]
listen = "127.0.0.1:0"
[[job]]
name = "billing"
kind = "billing"
schedule = { every = "365d" }
allow-long-gaps = true
"#;

/// How long a daemon shows the same status.
const CACHED: Duration = Duration::from_millis(2_050);
/// The batches of a run over the fleet.
const INSTANCES_OF_A_BATCH: u32 = 1_000;

/// Everything that a status counts: the batches of the last run, one hold for each fifty instances, a standing for each wallet, and
/// deliveries, of which one in a thousand waits.
async fn seed(db: &Db, args: &BenchStatusArgs) {
    db.seed_ledger(args.instances, args.hours).await;
    let (now, uuid) = match args.database {
        Engine::Sqlite => ("unixepoch() * 1000000", "lower(hex(randomblob(16)))"),
        Engine::Postgres => ("now()", "gen_random_uuid()"),
    };
    let batches = format!(
        "INSERT INTO billing_batches (id, run_id, fencing_token, as_of, instances, charges, held, hours, currencies)
         SELECT last.id + numbers.i, last.run_id, 1, last.as_of, 0, 0, 0, 0, last.currencies
           FROM (SELECT * FROM billing_batches ORDER BY id DESC LIMIT 1) AS last
          CROSS JOIN (WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) SELECT i FROM n) AS numbers",
        args.instances.div_ceil(INSTANCES_OF_A_BATCH)
    );
    let holds = format!(
        "INSERT INTO billing_holds (instance_id, organization_id, label, reason, hours_due, amount_due, currency, opened_at, seen_at)
         SELECT id, organization_id, label, 'insufficient_balance', 3, 100, 'USD', {now}, {now}
           FROM (SELECT *, row_number() OVER () AS number FROM vps_instances) AS fleet WHERE number % 50 = 0"
    );
    let standings = format!(
        "INSERT INTO billing_standings
             (organization_id, state, since, watched, episode, level, burn, owed, runway_hours, order_number, desired,
              evaluated_at)
         SELECT id, 'low', {now}, true, 1, 72, 1000000, 0, 100, 0, 'running', {now} FROM organizations"
    );
    let events = format!(
        "INSERT INTO billing_events (id, type, organization_id, body, created_at)
         SELECT {uuid}, 'billing.wallet.low', id, '{{}}', {now} FROM organizations"
    );
    let deliveries = format!(
        "INSERT INTO billing_deliveries (event_id, endpoint, organization_id, needed, status, attempts, next_at, sent_at)
         SELECT id, 'crm', organization_id, true, CASE WHEN number % 1000 = 0 THEN 'pending' ELSE 'sent' END, 1, {now},
                CASE WHEN number % 1000 <> 0 THEN {now} END
           FROM (SELECT *, row_number() OVER () AS number FROM billing_events) AS numbered"
    );
    let statistics = match args.database {
        Engine::Sqlite => "PRAGMA wal_checkpoint(TRUNCATE)",
        Engine::Postgres => "VACUUM ANALYZE",
    };
    for sql in [&*batches, &holds, &standings, &events, &deliveries, statistics] {
        db.execute(sql).await;
    }
}

/// Ids of instances all over the fleet.
async fn some_instances(db: &Db, args: &BenchStatusArgs) -> Vec<String> {
    use sea_orm::{ConnectionTrait as _, Statement};
    let labels: Vec<String> = (0..u64::from(args.requests))
        .map(|n| format!("'vps-{}'", n * 7_919_993 % u64::from(args.instances)))
        .collect();
    let sql = format!("SELECT CAST(id AS text) FROM vps_instances WHERE label IN ({})", labels.join(", "));
    let rows = db.admin().query_all_raw(Statement::from_string(db.backend(), sql)).await;
    let rows = rows.expect("the statement is valid");
    rows.iter().map(|row| row.try_get_by_index(0).expect("a text")).collect()
}

/// Requests the metrics; returns their text.
async fn metrics(address: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the daemon listens");
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the server answers");
    answer
}

fn quantiles(times: &mut [Duration]) -> Value {
    times.sort_unstable();
    let ms = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).max(1) - 1;
        (times[rank].as_secs_f64() * 10_000.0).round() / 10.0
    };
    json!({ "p50_ms": ms(50), "p95_ms": ms(95), "max_ms": ms(100) })
}

pub(super) async fn run(args: &BenchStatusArgs) -> Value {
    let db = database(args.database).await;
    seed(&db, args).await;
    let instances = some_instances(&db, args).await;
    let program = shipped_or_this(args.program.as_deref(), "bench-idle")
        .env("DATABASE_URL", &db.url)
        .env("LOG_LEVEL", "info")
        .file("jobs.toml", JOBS);
    let (mut version, mut status, mut explain, mut scrape) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let timed = async |arguments: &str, times: &mut Vec<Duration>| {
        let began = Instant::now();
        let ended = program.run(arguments).await;
        times.push(began.elapsed());
        ended
    };
    for instance in &instances {
        // What the start of any command takes.
        timed("version", &mut version).await.expect_code(0);
        // A fleet with holds and without a daemon has problems.
        let shown = timed("status --json", &mut status).await;
        assert!(shown.out.concat().contains("insufficient_balance"), "{shown:?}");
        let explained = timed(&format!("charges explain {instance} --json"), &mut explain).await;
        assert!(explained.expect_code(0).out.concat().contains("period_start"), "no charge was found");
    }
    let daemon = program.start("run");
    let line = daemon.wait_for_line("listening for HTTP on ").await;
    let address = line.rsplit_once(' ').expect("an address ends the line").1.to_owned();
    for _ in 0..args.requests {
        sleep(CACHED).await;
        let began = Instant::now();
        let text = metrics(&address).await;
        scrape.push(began.elapsed());
        assert!(text.contains("billing_daemon_held_instances"), "{text}");
    }
    daemon.terminated().await.expect_code(0);
    json!({
        "database": args.database.name(),
        "instances": args.instances,
        "version": quantiles(&mut version),
        "status": quantiles(&mut status),
        "charges_explain": quantiles(&mut explain),
        "metrics": quantiles(&mut scrape),
    })
}
