//! The cost of a daemon without work: `cargo run --release -p billing-tools -- bench-idle --seconds 60`.
//!
//! It runs the three jobs that ship on an empty, migrated PostgreSQL database: billing each hour, the heartbeat each minute, the
//! clean-up each ten minutes. Between it and the server a proxy counts its round trips by purpose.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use billing_test_support::{
    Db, Postgres, eventually,
    query_accounting::{CONTROL_POLL, by_cause},
};
use clap::Args;
use serde_json::json;
use tokio::time::sleep;

use super::{number, shipped_or_this};
use crate::faults::Proxy;

/// Measure a daemon that has no work
#[derive(Args)]
pub(super) struct BenchIdleArgs {
    /// Length of the measurement in seconds
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,
    /// Program to measure: a release build of billing-daemon; by default this program, whose pages and symbols take more memory
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

pub(super) fn daemon() -> ExitCode {
    billing_daemon::main(&billing_daemon::Plugins::none())
}

pub(super) async fn run(args: &BenchIdleArgs) -> serde_json::Value {
    let duration = Duration::from_secs(args.seconds);
    let db = Db::postgres().await;
    let server = Postgres::server().port();
    let proxy = Proxy::start(server).await.expect("a port is free");
    let url = db.url.replace(&format!(":{server}/"), &format!(":{}/", proxy.port()));
    let program = shipped_or_this(args.program.as_deref(), "bench-idle")
        .env("DATABASE_URL", &url)
        .file("jobs.toml", include_str!("../../../../jobs.toml"));
    let began = number(&db, "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS n").await;
    let mut daemon = program.start("run");
    let heartbeat = "SELECT count(*) AS n FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL";
    eventually("it beats", async || (number(&db, heartbeat).await > 0).then_some(())).await;
    // By the clock of the server, because the test sees the heartbeat up to one poll late.
    let first =
        "SELECT (extract(epoch FROM min(heartbeat_at)) * 1000)::bigint AS n FROM billing_daemon_status";
    let start_ms = number(&db, first).await - began;
    daemon.wait_for_line("charged 0.00 for 0 hours").await;
    // The work of the start is finished by then.
    sleep(Duration::from_secs(3)).await;
    let pid = daemon.pid();
    let _ = proxy.round_trips();
    let (ticks, transactions) = (ticks(pid), committed(&db).await);
    sleep(duration).await;
    assert!(daemon.is_alive(), "the daemon ended");
    let per_second = f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100));
    #[expect(clippy::cast_precision_loss, reason = "a number of hundredths of a second")]
    let cpu_seconds = (self::ticks(pid) - ticks) as f64 / per_second;
    // The figures of PostgreSQL are a second old at most; those of this connection are taken off.
    let transactions = committed(&db).await - transactions;
    let trips = proxy.round_trips();
    let by_cause = by_cause(&trips);
    let figures = json!({
        "start_to_heartbeat_ms": start_ms,
        "seconds": duration.as_secs(),
        "cpu_percent_of_a_core": (cpu_seconds / duration.as_secs_f64() * 1e5).round() / 1e3,
        "rss_mb": resident_mb(pid),
        "rss_heap_and_stacks_mb": memory_mb(pid, "RssAnon:"),
        "rss_mapped_files_mb": memory_mb(pid, "RssFile:"),
        "transactions": transactions,
        "round_trips": trips.len(),
        "round_trips_per_tick": per(trips.len(), by_cause.get(CONTROL_POLL).copied().unwrap_or_default()),
        "round_trips_by_cause": by_cause,
    });
    daemon.terminated().await.expect_code(0);
    figures
}

/// A tick polls control requests once, so there were as many ticks as polls.
#[expect(clippy::cast_precision_loss, reason = "a number of seconds")]
fn per(trips: usize, ticks: usize) -> f64 {
    (trips as f64 / ticks as f64 * 100.0).round() / 100.0
}

/// Transactions of the daemon's database so far.
async fn committed(db: &Db) -> i64 {
    number(
        db,
        "SELECT xact_commit + xact_rollback AS n FROM pg_stat_database WHERE datname = current_database()",
    )
    .await
}

/// Of processors, in user mode and in the kernel.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the daemon runs");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name in brackets").1.split(' ').collect();
    fields[11..=12].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// The resident memory of a process.
pub(super) fn resident_mb(pid: u32) -> f64 {
    memory_mb(pid, "VmRSS:")
}

/// A field of the status that Linux reports of a process.
fn memory_mb(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux reports it");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    (kib / 102.4).round() / 10.0
}
