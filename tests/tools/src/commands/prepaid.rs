//! The campaign of the prepaid policy on the command line:
//! `cargo run --release -p billing-tools -- prepaid --database postgres --seconds 120 --seed 1`.

use std::{process::ExitCode, time::Duration};

use clap::Args;

use super::this_program;
use crate::{
    Engine,
    prepaid::{self, Options},
};

/// Warn, suspend and resume customers while daemons and receivers fail, and count what went wrong
#[derive(Args)]
pub(super) struct PrepaidArgs {
    /// Database that the daemons share
    #[arg(long, value_enum)]
    database: Engine,
    /// Seconds during which customers act and faults are injected
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Safeguards to remove from the daemons, separated by commas
    #[arg(long)]
    mutation: Option<String>,
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: PrepaidArgs) -> ExitCode {
    let mut options =
        Options::new(args.database, Duration::from_secs(args.seconds), args.seed, this_program());
    if let Some(names) = &args.mutation {
        options = options.mutated(names);
    }
    let report = Box::pin(prepaid::run(&options)).await;
    if args.json {
        eprintln!("{report}");
        println!("{}", serde_json::to_string(&report).expect("numbers are always JSON"));
    } else {
        println!("{report}");
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
