//! The campaign of the prepaid policy on the command line:
//! `cargo run --release -p billing-tools -- prepaid --database postgres --seconds 120 --seed 1`.

use std::{process::ExitCode, time::Duration};

use clap::Args;

use super::{campaign_args::CampaignArgs, this_program};
use crate::prepaid::{self, Options};

/// Warn, suspend and resume customers while daemons and receivers fail, and count what went wrong
#[derive(Args)]
pub(super) struct PrepaidArgs {
    #[command(flatten)]
    campaign: CampaignArgs,
}

pub(super) async fn run(PrepaidArgs { campaign: args }: PrepaidArgs) -> ExitCode {
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
