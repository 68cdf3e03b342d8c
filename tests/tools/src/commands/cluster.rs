//! Faults of a cluster on the command line: `cargo run --release -p billing-tools -- cluster --seconds 300 --seed 1 --json`.

use std::{process::ExitCode, time::Duration};

use clap::{Args, ValueEnum as _};

use super::this_program;
use crate::cluster::{self, Fault, Options};

/// Run real daemons on a Patroni cluster while its parts fail, and count what went wrong
///
/// Needs etcd, Patroni and HAProxy, which `scripts/nightly.sh cluster` installs on Debian.
#[derive(Args)]
pub(super) struct ClusterArgs {
    /// Seconds during which faults are injected; a fault that has begun is finished
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Faults to inject, separated by commas; by default all that the mode permits
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Let no standby confirm commits, so that a failover loses some
    #[arg(long)]
    asynchronous: bool,
    /// Keep the logs of all servers and daemons
    #[arg(long)]
    keep_logs: bool,
    /// Print one line of JSON instead of a report
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: ClusterArgs) -> ExitCode {
    let options = Options {
        duration: Duration::from_secs(args.seconds),
        seed: args.seed,
        daemon: this_program(),
        faults: if args.faults.is_empty() { Fault::value_variants().to_vec() } else { args.faults },
        synchronous: !args.asynchronous,
        verbose: !args.json,
        keep_logs: args.keep_logs,
    };
    let report = Box::pin(cluster::run(&options)).await;
    if args.json {
        // The findings are for a person, the line for a program.
        report.findings.iter().for_each(|finding| eprintln!("{finding}"));
        println!("{}", serde_json::to_string(&report).expect("numbers are always JSON"));
    } else {
        println!("{report}");
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
