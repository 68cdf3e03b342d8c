//! The time of each page of the console over a large fleet, `cargo run --release -p billing-tools -- bench-console --instances 1000000`,
//! and what pages cost billing, `... bench-console --browsers 20`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use billing_test_support::{Db, Program, Running, connect};
use clap::Args;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};

use super::{bench_idle::resident_mb, this_program};
use crate::{
    DAEMON,
    bench::{Options, Rounds, compare::Ratio},
};

/// Measure the pages of the console over a large fleet
#[derive(Args)]
pub(super) struct BenchConsoleArgs {
    /// Number of instances, of which five share a wallet; as many runs are in the history
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    instances: u32,
    /// Number of charges of each instance
    #[arg(long, value_name = "N", default_value_t = 20)]
    hours: u32,
    /// Number of requests for each page
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(20..))]
    requests: u32,
    /// Use this database, which is seeded already, as the role that owns it
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Bill in turns with and without this many browsers that refresh pages, instead of measuring each page
    #[arg(long, value_name = "N", conflicts_with = "database_url")]
    browsers: Option<u32>,
    /// Number of pairs of rounds with `--browsers`, after the warm-up
    #[arg(long, value_name = "R", default_value_t = 7, requires = "browsers")]
    rounds: u32,
}

/// How often a browser requests a fragment.
const REFRESH: Duration = Duration::from_secs(5);
/// The pages that are left open.
const OPEN: [&str; 5] = ["", "jobs/billing", "wallets", "holds", "billing"];

/// Billing is hourly, as pages expect it, but not due yet: nothing changes while pages are measured.
const JOBS: &str = r#"
[http]
listen = "127.0.0.1:0"
[http.console]
access = "operate"
tokens-file = "tokens"
[[job]]
name = "billing"
kind = "billing"
schedule = { every = "1h" }
not-before = 2100-01-01T00:00:00Z
[[job]]
name = "heartbeat"
kind = "heartbeat"
schedule = { every = "1m" }
scope = "node"
run-at-start = true
"#;

pub(super) fn daemon() -> ExitCode {
    billing_daemon::main(&billing_daemon::Plugins::none())
}

/// The history, the standings, the holds and the deliveries of the fleet: every table that a page reads is large.
async fn seed(db: &Db, args: &BenchConsoleArgs) {
    let instances = args.instances;
    db.seed_ledger(instances, args.hours).await;
    let runs = format!(
        "INSERT INTO scheduler_runs (id, job, scheduled_at, status, attempt, fencing_token, daemon_id, started_at, finished_at, items)
         SELECT gen_random_uuid(), CASE n % 4 WHEN 0 THEN 'billing' ELSE 'heartbeat' END, at, 'done', 1, n, 'north', at, at + interval '1s', 5
           FROM (SELECT n, now() - n * interval '1 minute' AS at FROM generate_series(1, {instances}) AS n) AS runs"
    );
    let standings = "INSERT INTO billing_standings
             (organization_id, state, since, watched, episode, level, burn, owed, runway_hours, order_number, desired,
              evaluated_at)
         SELECT id, 'low', now(), true, 1, 72, 1000000, 0, row_number() OVER () % 200, 0, 'running', now() FROM organizations";
    let holds = "INSERT INTO billing_holds (instance_id, organization_id, label, reason, hours_due, amount_due, currency, opened_at, seen_at)
         SELECT id, organization_id, label, CASE WHEN number % 2 = 0 THEN 'insufficient_balance' ELSE 'catch_up_limit' END, 3, 100, 'USD',
                now(), now()
           FROM (SELECT *, row_number() OVER () AS number FROM vps_instances) AS fleet WHERE number % 50 = 0";
    let events = "INSERT INTO billing_events (id, type, organization_id, body, created_at)
         SELECT gen_random_uuid(), 'billing.wallet.low', id, '{}', now() FROM organizations";
    let deliveries = "INSERT INTO billing_deliveries (event_id, endpoint, organization_id, needed, status, attempts, next_at, sent_at)
         SELECT id, 'crm', organization_id, true, 'sent', 1, now(), now() FROM billing_events";
    for sql in [&*runs, standings, holds, events, deliveries, "VACUUM ANALYZE"] {
        db.execute(sql).await;
    }
}

/// Texts of a query, for subjects of pages.
async fn texts(db: &DatabaseConnection, sql: &str) -> Vec<String> {
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await;
    let rows = rows.expect("the statement is valid");
    rows.iter().map(|row| row.try_get_by_index(0).expect("a text")).collect()
}

/// Requests a page; returns its status and how long it took.
async fn get(address: &str, token: &str, path: &str) -> (u16, Duration) {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).await.expect("the daemon listens");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the server answers");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, began.elapsed())
}

/// A daemon that serves the console.
struct Served {
    daemon: Running,
    address: String,
    token: String,
    /// It keeps the folder with jobs.toml.
    _program: Program,
}

async fn serve(url: &str) -> Served {
    let program = Program::new(this_program())
        .env(DAEMON, "bench-console")
        .env("DATABASE_URL", url)
        .file("jobs.toml", JOBS);
    let made = program.run("console token --name bench --rights view,operate,approve,audit-log --json").await;
    let made: Value = serde_json::from_str(&made.expect_code(0).out.concat()).expect("an object");
    let [line, token] = ["line", "token"].map(|key| made[key].as_str().expect("a text").to_owned());
    let program = program.file("tokens", &format!("{line}\n"));
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(program.folder().join("tokens"), private).expect("our own file");
    let daemon = program.start("run");
    let line = daemon.wait_for_line("listening for HTTP on ").await;
    let address = line.rsplit_once(' ').expect("an address ends the line").1.to_owned();
    Served { daemon, address, token, _program: program }
}

/// Requests pages as browsers do that are left open, until the set is dropped; counts the answers.
fn browse(served: &Served, browsers: u32, answers: &Arc<[AtomicU64; 2]>) -> JoinSet<()> {
    let mut open = JoinSet::new();
    for browser in 0..browsers {
        let (address, token, answers) = (served.address.clone(), served.token.clone(), Arc::clone(answers));
        let path = format!("/console/{}", OPEN[browser as usize % OPEN.len()]);
        open.spawn(async move {
            sleep(REFRESH * browser / browsers).await;
            loop {
                let (status, _) = get(&address, &token, &path).await;
                answers[usize::from(status != 200)].fetch_add(1, Ordering::Relaxed);
                sleep(REFRESH).await;
            }
        });
    }
    open
}

/// Bills in turns without and with browsers, whose pages the daemon answers next to the process that bills.
async fn with_browsers(args: &BenchConsoleArgs, browsers: u32) -> Value {
    let mut rounds = Rounds::seeded(&Options::hourly(args.instances, args.rounds, this_program())).await;
    let served = serve(&rounds.url()).await;
    rounds.bill().await;
    let answers = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let mut pairs = Vec::new();
    for pair in 0..args.rounds {
        let (mut alone, mut browsed) = (0.0, 0.0);
        // The first round of a pair is not always the same.
        for is_browsed in [pair % 2 == 1, pair % 2 == 0] {
            let open = is_browsed.then(|| browse(&served, browsers, &answers));
            *if is_browsed { &mut browsed } else { &mut alone } = rounds.bill().await;
            drop(open);
        }
        pairs.push((browsed, alone));
        eprintln!("{} pairs: browsed / alone = {}", pairs.len(), Ratio::of(&pairs));
    }
    served.daemon.terminated().await.expect_code(0);
    let Ratio { estimate, low, high } = Ratio::of(&pairs);
    let percent = |ratio: f64| ((ratio - 1.0) * 10_000.0).round() / 100.0;
    let [answered, failed] = [0, 1].map(|kind: usize| answers[kind].load(Ordering::Relaxed));
    json!({
        "instances": args.instances,
        "browsers": browsers,
        "seconds_browsed_and_alone": pairs,
        "slower_percent": { "estimate": percent(estimate), "low": percent(low), "high": percent(high) },
        "pages": { "answered": answered, "failed": failed },
    })
}

pub(super) async fn run(args: &BenchConsoleArgs) -> Value {
    if let Some(browsers) = args.browsers {
        return with_browsers(args, browsers).await;
    }
    let seeded = match args.database_url {
        Some(_) => None,
        None => Some(Db::postgres().await),
    };
    if let Some(db) = &seeded {
        seed(db, args).await;
    }
    let url = args.database_url.clone().or_else(|| seeded.as_ref().map(|db| db.url.clone()));
    let url = url.expect("there is a database");
    let db = connect(&url).await;
    let Served { daemon, address, token, _program } = serve(&url).await;
    let before_mb = resident_mb(daemon.pid());

    let subjects = |table: &str, column: &str| {
        format!(
            "SELECT CAST({column} AS text) FROM {table} ORDER BY md5(CAST({column} AS text)) LIMIT {}",
            args.requests
        )
    };
    let instances = texts(&db, &subjects("vps_instances", "id")).await;
    let organizations = texts(&db, &subjects("organizations", "id")).await;
    let runs = texts(&db, &subjects("scheduler_runs", "id")).await;
    let events = texts(&db, &subjects("billing_events", "id")).await;
    let pages = [
        ("overview", vec![String::new()]),
        ("jobs", vec!["jobs".to_owned()]),
        ("job", vec!["jobs/billing".to_owned(), "jobs/heartbeat".to_owned()]),
        ("timeline", vec!["jobs/billing/timeline?runs=500".to_owned()]),
        ("run", runs.iter().map(|id| format!("runs/{id}")).collect()),
        ("billing", vec!["billing".to_owned()]),
        ("schedule", vec!["schedule".to_owned(), "schedule?text=30+2+*+*+*".to_owned()]),
        ("approvals", vec!["approvals".to_owned()]),
        ("holds", vec!["holds".to_owned(), "holds?reason=catch_up_limit&after=1000".to_owned()]),
        ("wallets", vec!["wallets".to_owned(), "wallets?below=24".to_owned()]),
        ("wallet", organizations.iter().map(|id| format!("wallets/{id}")).collect()),
        ("charge", instances.iter().map(|id| format!("charges/{id}")).collect()),
        ("events", vec!["events".to_owned(), "events?status=dead".to_owned()]),
        ("event", events.iter().map(|id| format!("events/{id}")).collect()),
        ("daemons", vec!["daemons".to_owned()]),
        ("audit-log", vec!["audit-log".to_owned()]),
    ];
    let mut rng = StdRng::seed_from_u64(1);
    let mut figures = Map::new();
    for (name, paths) in pages {
        let mut times = Vec::new();
        for _ in 0..args.requests {
            let path = format!("/console/{}", paths[rng.random_range(0..paths.len())]);
            let (status, took) = get(&address, &token, &path).await;
            assert_eq!(status, 200, "{path}");
            times.push(took.as_secs_f64() * 1_000.0);
            // The listener admits 100 requests a second of one peer.
            sleep(Duration::from_millis(12)).await;
        }
        times.sort_by(f64::total_cmp);
        let rank = |percent: usize| (times[(times.len() * percent).div_ceil(100) - 1] * 10.0).round() / 10.0;
        figures
            .insert(name.to_owned(), json!({ "p50_ms": rank(50), "p95_ms": rank(95), "max_ms": rank(100) }));
    }
    let after_mb = resident_mb(daemon.pid());
    daemon.terminated().await.expect_code(0);
    json!({
        "instances": args.instances,
        "charges": u64::from(args.instances) * u64::from(args.hours),
        "runs": args.instances,
        "requests_per_page": args.requests,
        "rss_mb": { "before": before_mb, "after": after_mb },
        "pages": figures,
    })
}
