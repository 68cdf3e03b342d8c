//! How fast a fleet is billed: `cargo run --release -p billing-tools -- bench-billing --database postgres --json`.

use std::{env, path::PathBuf, process::ExitCode};

use clap::Args;
use tokio::runtime::Runtime;

use super::this_program;
use crate::{
    Engine,
    bench::{
        self, Options,
        compare::compare,
        pure,
        workload::{self, Workload},
    },
};

/// Bill a generated fleet: our way, the original's way, and as fast as the database can write the same rows
#[derive(Args)]
pub(super) struct BenchBillingArgs {
    /// Database: a separate server, or a file
    #[arg(long, value_enum, required_unless_present = "decisions")]
    database: Option<Engine>,
    /// Number of due instances, with a fifth as many wallets
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10..))]
    instances: u32,
    /// Number of charges of earlier hours
    #[arg(long, value_name = "ROWS", default_value_t = 0)]
    history: u32,
    /// Hours of each instance that are due in each round
    #[arg(long, value_name = "H", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    hours: u32,
    /// Number of connections that bill; by default the daemon adapts it
    #[arg(long, value_name = "C")]
    connections: Option<u32>,
    /// Instances per transaction; by default the daemon adapts it
    #[arg(long, value_name = "N")]
    batch: Option<u32>,
    /// Setting of the PostgreSQL server, for example `wal_compression=lz4`; in a comparison only this build's server has it
    #[arg(long = "setting", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<String>,
    /// Number of measured rounds after the warm-up
    #[arg(long, value_name = "R", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Instances of each round that are billed the original's way
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Compare this build with another build of this program, until a loss of 5 % is excluded or proven
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["json", "worker"])]
    compare: Option<PathBuf>,
    /// Workload of the comparison
    #[arg(long, value_enum, default_value = "billing")]
    workload: Workload,
    /// Run one round of the workload for each line on standard input; the other side of `--compare`
    #[arg(long)]
    worker: bool,
    /// Only make the pure decisions this many times, for callgrind
    #[arg(long, value_name = "N")]
    decisions: Option<u32>,
}

/// The daemon that bills; prints its peak memory at the end.
pub(super) fn daemon() -> ExitCode {
    // The clock of the run is set by an environment variable.
    billing_jobs::fault_injection::enable();
    let code = billing_daemon::main(&billing_daemon::Plugins::none());
    eprintln!("{}", bench::peak_memory());
    code
}

pub(super) fn run(args: BenchBillingArgs, runtime: &Runtime) -> ExitCode {
    if let Some(iterations) = args.decisions {
        pure::decide(iterations);
        return ExitCode::SUCCESS;
    }
    if args.database == Some(Engine::Sqlite) && !args.settings.is_empty() {
        eprintln!("error: --setting needs --database postgres");
        return ExitCode::from(64);
    }
    let options = Options {
        engine: args.database.unwrap_or(Engine::Sqlite),
        instances: args.instances,
        history: args.history,
        hours: args.hours,
        connections: args.connections,
        batch: args.batch,
        settings: args.settings,
        rounds: args.rounds,
        sample: args.sample,
        program: this_program(),
    };
    if args.worker {
        runtime.block_on(workload::work(args.workload, &options));
        return ExitCode::SUCCESS;
    }
    if let Some(other) = args.compare {
        // A worker gets the same arguments, without the program to compare with.
        let of_this = without("--compare", env::args().skip(1));
        let of_other = without("--setting", of_this.clone());
        return runtime.block_on(compare((options.program, &of_this), (other, &of_other)));
    }
    let report = runtime.block_on(bench::run(&options));
    if args.json {
        println!("{}", serde_json::to_string(&report).expect("numbers are always JSON"));
    } else {
        println!("{report}");
    }
    ExitCode::SUCCESS
}

/// A line of a server's configuration.
fn setting(text: &str) -> Result<String, String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok(format!("{name} = '{value}'"))
}

/// The arguments without each occurrence of an option and its value.
fn without(option: &str, arguments: impl IntoIterator<Item = String>) -> Vec<String> {
    let joined = format!("{option}=");
    let mut arguments = arguments.into_iter();
    let mut kept = Vec::new();
    while let Some(argument) = arguments.next() {
        if argument == option {
            arguments.next();
        } else if !argument.starts_with(&joined) {
            kept.push(argument);
        }
    }
    kept
}
