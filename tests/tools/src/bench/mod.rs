//! How fast a fleet is billed, compared with the original daemon and with the database's limit: all measured in
//! one run, in turn, so that the ratios hold on a host that is busy with something else.
//!
//! | measured | what it does |
//! |---|---|
//! | ours | the daemon's own command `bill`, in a separate process |
//! | original | one transaction of eleven statements an instance, one connection, on a sample |
//! | floor | the rows that ours wrote, copied in bulk into the same tables, with one `UPDATE` of everything that moves |
//!
//! Ours and the floor begin with equal databases; after each round their contents must have equal checksums.

pub mod compare;
mod fleet;
mod ours;
mod postgres;
pub mod pure;
mod report;
mod rounds;
mod sqlite;
mod top_up;
pub mod workload;

use std::{path::PathBuf, time::Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use self::{ours::Ours, postgres::PostgresEngine, report::median, sqlite::SqliteEngine, top_up::Waits};

use crate::Engine;

pub use ours::peak_memory;
pub(crate) use ours::printed_peak_mib;
pub use report::Report;
pub(crate) use rounds::Rounds;

/// How long a daemon may be away without an approval.
const CATCH_UP_HOURS: u32 = 72;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database: a file with `synchronous = FULL`, or a server with `fsync` and `synchronous_commit`.
    pub engine: Engine,
    /// How many instances are due.
    pub instances: u32,
    /// The number of earlier charges, each with its rows in the panel's tables.
    pub history: u32,
    /// How many hours of each instance are due in each round.
    pub hours: u32,
    /// How many connections bill at once; it adapts if none is given.
    pub connections: Option<u32>,
    /// How many instances a transaction bills; it adapts if none is given.
    pub batch: Option<u32>,
    /// Lines for the configuration of the PostgreSQL server.
    pub settings: Vec<String>,
    /// How many rounds are measured after the warm-up.
    pub rounds: u32,
    /// How many instances of a round are billed the original's way.
    pub sample: u32,
    /// This program, which is started again to bill.
    pub program: PathBuf,
}

impl Options {
    /// An hour of a fleet on PostgreSQL in each round, without the original's way.
    pub(crate) fn hourly(instances: u32, rounds: u32, program: PathBuf) -> Self {
        Self {
            engine: Engine::Postgres,
            instances,
            history: 0,
            hours: 1,
            connections: None,
            batch: None,
            settings: Vec::new(),
            rounds,
            sample: 0,
            program,
        }
    }
}

/// The costs of one part of a round.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    seconds: f64,
    /// Processor time of all processes of the database's server; 0 without a server.
    server_cpu_seconds: f64,
    wal_bytes: f64,
}

/// The figures of a benchmark.
struct Measured {
    bills: Vec<Cost>,
    /// Seconds an instance.
    floor: f64,
    original: f64,
    peak_mb: f64,
    /// How many times as long as one hour it takes to bill three days at once.
    catch_up: f64,
    waits: Waits,
}

/// A kind of database that can be measured. There is one database for each of the three ways.
trait Bench {
    /// The URL of the database that ours bills.
    fn url(&self) -> String;
    /// The server's usage so far: seconds of processors, bytes of write-ahead log.
    async fn used(&mut self) -> (f64, f64);
    /// Writes back what earlier parts left behind, so that no part pays for another.
    async fn settle(&mut self);
    /// Copies what ours wrote since the last time into the floor's database.
    async fn floor(&mut self, hours: u32, first: bool) -> f64;
    /// Bills this many instances the original's way.
    async fn original(&mut self, sample: u32, hours: u32) -> f64;
    /// Checksums of what ours and the floor wrote, a line for each table.
    async fn checksums(&mut self) -> [Vec<String>; 2];
    /// Tops up wallets of the database that ours bills, until it is stopped.
    async fn top_up(&self, stop: oneshot::Receiver<()>) -> Waits;
}

/// Runs the benchmark.
pub async fn run(options: &Options) -> Report {
    match options.engine {
        Engine::Sqlite => measure(&mut SqliteEngine::seeded(options).await, options).await,
        Engine::Postgres => measure(&mut PostgresEngine::seeded(options).await, options).await,
    }
}

async fn measure(bench: &mut impl Bench, options: &Options) -> Report {
    let ours = Ours::new(options, bench.url());
    let (mut bills, mut floors, mut originals) = (Vec::new(), Vec::new(), Vec::new());
    let mut peak_mb: f64 = 0.0;
    let instances = f64::from(options.instances);
    let sample = options.sample.min(options.instances);
    for round in 0..=options.rounds {
        let hours = if round == 0 { 1 } else { options.hours };
        let ended = 1 + round * options.hours;
        bench.settle().await;
        let before = bench.used().await;
        let bill = ours.bill(ended).await;
        assert_eq!(bill.charged, u64::from(options.instances), "every instance is charged in each round");
        let used = minus(bench.used().await, before);
        peak_mb = peak_mb.max(bill.peak_mb);
        bench.settle().await;
        let floor = bench.floor(hours, round == 0).await;
        let [of_ours, of_floor] = bench.checksums().await;
        assert_eq!(of_ours, of_floor, "ours and the floor write the same");
        bench.settle().await;
        let original = bench.original(sample, hours).await;
        eprintln!(
            "{} ours {:.0}/s, {:.1} us of the server each, {:.1} % of the time to bound the run; floor {:.0}/s; original {:.0}/s",
            if round == 0 { "warm-up:".to_owned() } else { format!("round {round}:") },
            instances / bill.seconds,
            used.0 * 1e6 / instances,
            100.0 * bill.spike_guard_seconds / bill.seconds,
            instances / floor,
            f64::from(sample) / original,
        );
        if round > 0 {
            bills.push(Cost { seconds: bill.seconds, server_cpu_seconds: used.0, wal_bytes: used.1 });
            floors.push(floor);
            originals.push(original);
        }
    }
    let (stop, stopped) = oneshot::channel();
    let ended = 1 + (options.rounds + 1) * options.hours;
    bench.settle().await;
    let (waits, bill) = tokio::join!(bench.top_up(stopped), async {
        let bill = ours.bill(ended).await;
        // The receiver is gone only if the top-ups failed, and that panics.
        let _ = stop.send(());
        bill
    });
    peak_mb = peak_mb.max(bill.peak_mb);
    eprintln!(
        "with top-ups: ours {:.0}/s; {} top-ups, {:.0} ms (p99), {:.0} ms (longest); at most {peak_mb:.0} MiB by now",
        instances / bill.seconds,
        waits.len(),
        waits.quantile(0.99),
        waits.quantile(1.0),
    );
    bench.settle().await;
    let one_hour = ours.bill(ended + 1).await;
    bench.settle().await;
    let three_days = ours.bill(ended + 1 + CATCH_UP_HOURS).await;
    let measured = Measured {
        bills,
        floor: median(&floors) / instances,
        original: median(&originals) / f64::from(sample),
        peak_mb: peak_mb.max(three_days.peak_mb),
        catch_up: three_days.seconds / one_hour.seconds,
        waits,
    };
    Report::new(options, &measured)
}

/// Bills two hours of a fleet on PostgreSQL, which needs one database instead of three.
pub async fn run_fleet(options: &Options) -> Value {
    let began = Instant::now();
    let mut bench = PostgresEngine::seeded_alone(options).await;
    let seeded = began.elapsed();
    eprintln!("seeded in {:.0} s", seeded.as_secs_f64());
    let ours = Ours::new(options, bench.url());
    let instances = f64::from(options.instances);
    let mut hours = Vec::new();
    for hour in 1..=2 {
        bench.settle().await;
        let before = bench.used().await;
        let (stop_top_ups, top_ups_stopped) = oneshot::channel();
        let (stop_watch, watch_stopped) = oneshot::channel();
        let top_ups =
            async { if hour == 1 { Waits::default() } else { bench.top_up(top_ups_stopped).await } };
        let bill = async {
            let bill = ours.bill(hour).await;
            // Nothing receives it in the hour without top-ups.
            let _ = (stop_top_ups.send(()), stop_watch.send(()));
            bill
        };
        let (waits, longest_transaction, bill) =
            tokio::join!(top_ups, bench.longest_transaction(watch_stopped), bill);
        assert_eq!(bill.charged, u64::from(options.instances), "every instance is charged in each hour");
        let used = minus(bench.used().await, before);
        eprintln!("hour {hour}: {:.0}/s", instances / bill.seconds);
        hours.push(json!({
            "seconds": bill.seconds,
            "instances_per_s": instances / bill.seconds,
            "server_cpu_us_per_instance": used.0 * 1e6 / instances,
            "wal_bytes_per_instance": used.1 / instances,
            "rss_mb": bill.peak_mb,
            "longest_transaction_ms": longest_transaction,
            "top_ups": waits.len(),
            "top_up_p99_ms": waits.quantile(0.99),
            "top_up_max_ms": waits.quantile(1.0),
        }));
    }
    json!({
        "instances": options.instances,
        "seed_seconds": seeded.as_secs_f64(),
        "database_bytes": bench.database_bytes().await,
        "hours": hours,
    })
}

fn minus(after: (f64, f64), before: (f64, f64)) -> (f64, f64) {
    (after.0 - before.0, after.1 - before.1)
}
