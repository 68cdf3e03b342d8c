//! The cost of an audit of a large ledger:
//! `cargo run --release -p billing-tools -- bench-audit --database sqlite --without-indexes`.

use std::{process::Stdio, time::Instant};

use clap::Args;
use serde_json::{Value, json};
use tokio::process::Command;

use super::{database, this_program};
use crate::{DAEMON, Engine, bench::printed_peak_mib};

/// Measure an audit of a large ledger
#[derive(Args)]
pub(super) struct BenchAuditArgs {
    /// Database of the ledger
    #[arg(long, value_enum, default_value_t = Engine::Postgres)]
    database: Engine,
    /// Number of charges
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    charges: u32,
    /// Number of charges of each instance
    #[arg(long, value_name = "H", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    hours: u32,
    /// Drop the indexes of the panel's tables that are not keys
    #[arg(long)]
    without_indexes: bool,
    /// Print the time of each check on standard error
    #[arg(long)]
    verbose: bool,
}

pub(super) async fn run(args: &BenchAuditArgs) -> Value {
    let db = database(args.database).await;
    db.seed_ledger(args.charges / args.hours, args.hours).await;
    if args.without_indexes {
        db.drop_optional_indexes().await;
    }
    let level = if args.verbose { "warn,billing_jobs::audit=debug" } else { "warn" };
    let began = Instant::now();
    let output = Command::new(this_program())
        .args(["audit", "--json"])
        .env_clear()
        // As `bench-billing` starts it, it prints its peak memory at the end.
        .envs([("DATABASE_URL", db.url.as_str()), (DAEMON, "bench-billing"), ("LOG_LEVEL", level)])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("this program starts again");
    let seconds = began.elapsed().as_secs_f64();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if args.verbose {
        eprint!("{err}");
    }
    assert_eq!(output.status.code(), Some(0), "the audit failed: {out}{err}");
    let audit: Value = serde_json::from_str(out.trim()).expect("JSON");
    json!({
        "database": args.database.name(),
        "charges": args.charges,
        "instances": args.charges / args.hours,
        "indexes": !args.without_indexes,
        "checked": audit["checked"],
        "seconds": (seconds * 10.0).round() / 10.0,
        "peak_mib": (printed_peak_mib(&err) * 10.0).round() / 10.0,
    })
}
