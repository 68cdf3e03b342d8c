//! The program that measures the daemon, injects faults into it and creates databases for experiments.
//!
//! `cargo run --release -p billing-tools -- --help` lists its commands. It is a library too, because the end-to-end tests start
//! the same program and run the fault campaign.

#![expect(clippy::missing_panics_doc, reason = "a measurement or a campaign that cannot continue panics")]

pub mod bench;
pub mod cluster;
mod commands;
pub mod faults;
pub mod prepaid;

use clap::ValueEnum;

pub use commands::main;

/// The environment variable that turns the program into a daemon. Its value is the command that starts the daemon.
const DAEMON: &str = "BILLING_TOOLS_DAEMON";

/// The database of a measurement or a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// A file.
    Sqlite,
    /// A separate server.
    Postgres,
}

impl Engine {
    /// The name as in the option `--database`.
    fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }

    /// How many daemons share the database of a campaign.
    fn daemons(self) -> usize {
        match self {
            Self::Sqlite => 2,
            Self::Postgres => 3,
        }
    }
}
