//! The fault campaign by hand: `cargo run --release -p e2e --bin faults -- --database postgres --seconds 600 --seed 1`.

use std::{env, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use e2e::faults::{self, Engine, Options};

/// Runs real daemons against everything that may fail, and counts what went wrong.
#[derive(Parser)]
struct Cli {
    /// Which database the daemons share.
    #[arg(long, value_enum)]
    database: Kind,
    /// How long faults are injected.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// What everything random follows from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Guards to leave out of the daemons, separated by commas.
    #[arg(long)]
    mutation: Option<String>,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Sqlite,
    Postgres,
}

fn main() -> ExitCode {
    // The campaign starts this same program as its daemons.
    if env::var_os("FAULTS_DAEMON").is_some() {
        return daemon();
    }
    let cli = Cli::parse();
    let engine = match cli.database {
        Kind::Sqlite => Engine::Sqlite,
        Kind::Postgres => Engine::Postgres,
    };
    let daemon = env::current_exe().expect("a program knows where it is");
    let mut options = Options::new(engine, Duration::from_secs(cli.seconds), cli.seed, daemon);
    if let Some(names) = &cli.mutation {
        options = options.mutated(names);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let report = runtime.block_on(faults::run(&options));
    println!("{report}");
    if cli.json {
        println!("{}", serde_json::to_string(&report).expect("numbers are always JSON"));
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A daemon that ends with the campaign, also when that is killed.
fn daemon() -> ExitCode {
    std::thread::spawn(|| {
        // Nothing is ever written to it: it ends when the campaign does.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::abort();
    });
    billing_jobs::fault_injection::enable();
    billing_daemon::main(&billing_daemon::Plugins::none())
}
