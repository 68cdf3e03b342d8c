//! How a large fleet is billed on PostgreSQL, without anything to compare it with:
//! `cargo run --release -p billing-tools -- bench-fleet --instances 5000000`.

use clap::Args;
use serde_json::Value;

use super::this_program;
use crate::bench::{self, Options};

/// Bill two hours of a large fleet, the second one while wallets are topped up: costs, memory, longest waits
#[derive(Args)]
pub(super) struct BenchFleetArgs {
    /// Number of instances, with a fifth as many wallets
    #[arg(long, value_name = "N", default_value_t = 5_000_000, value_parser = clap::value_parser!(u32).range(10..))]
    instances: u32,
}

pub(super) async fn run(args: &BenchFleetArgs) -> Value {
    bench::run_fleet(&Options::hourly(args.instances, 1, this_program())).await
}
