//! The fault campaign on the command line: `cargo run --release -p billing-tools -- faults --database postgres --seconds 600 --seed 1`.

use std::{process::ExitCode, time::Duration};

use clap::Args;

use super::{campaign_args::CampaignArgs, this_program};
use crate::faults::{self, Options};

/// Run real daemons while faults are injected, and count what went wrong
#[derive(Args)]
pub(super) struct FaultsArgs {
    #[command(flatten)]
    campaign: CampaignArgs,
}

pub(super) async fn run(FaultsArgs { campaign: args }: FaultsArgs) -> ExitCode {
    let mut options =
        Options::new(args.database, Duration::from_secs(args.seconds), args.seed, this_program());
    if let Some(names) = &args.mutation {
        options = options.mutated(names);
    }
    let report = Box::pin(faults::run(&options)).await;
    println!("{report}");
    if args.json {
        println!("{}", serde_json::to_string(&report).expect("numbers are always JSON"));
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A daemon that ends with the campaign, also when that is killed.
pub(super) fn daemon() -> ExitCode {
    std::thread::spawn(|| {
        // Nothing is ever written to it: it ends when the campaign does.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::abort();
    });
    billing_jobs::fault_injection::enable();
    billing_daemon::main(&billing_daemon::Plugins::none())
}
