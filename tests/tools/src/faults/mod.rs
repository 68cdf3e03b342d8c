//! The fault campaign: real daemons bill a fleet whose clock runs fast, while everything around them fails.
//!
//! [`run`] is one campaign. The invariants are checked by `model` from the campaign's own record, with no
//! line of the billing code; [`billing_jobs::audit`] is called as well.

pub(crate) mod campaign;
pub(crate) mod daemons;
pub(crate) mod fleet;
pub(crate) mod injections;
pub(crate) mod journal;
mod model;
mod panel;
pub(crate) mod proxy;
mod report;
pub(crate) mod server;
mod tables;

use std::{ops::Range, path::PathBuf, time::Duration};

use crate::Engine;

pub use campaign::run;
pub use injections::Fault;
pub use proxy::Proxy;
pub use report::{Report, Seconds};

/// The options of a campaign.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database that the daemons share: two daemons on a file, or three on a server behind a proxy.
    pub engine: Engine,
    /// How long faults are injected.
    pub duration: Duration,
    /// Faults continue until so many runs of billing have ended as well, however slow the host is, up to a limit.
    pub runs: u64,
    /// The seed of all random choices.
    pub seed: u64,
    /// The program of a daemon: built with the feature `testing`.
    pub daemon: PathBuf,
    /// Further variables of the daemons' environment.
    pub environment: Vec<(String, String)>,
    /// Statements that break the schema before the start.
    pub sabotage: Vec<String>,
    /// The faults to inject, each equally often.
    pub faults: Vec<Fault>,
    /// Whether the panel's own biller runs too, behind the panel guard. It does so on PostgreSQL only.
    pub panel: bool,
    /// The milliseconds between two actions of customers.
    pub pace_ms: Range<u64>,
    /// The number of instances at the start.
    pub instances: usize,
    /// Whether the daemons' logs are kept if anything is found.
    pub keep_logs: bool,
    /// How long the daemons may take to bill everything in the end.
    pub settle_timeout: Duration,
}

impl Options {
    /// The options of a campaign on the command line.
    #[must_use]
    pub fn new(engine: Engine, duration: Duration, seed: u64, daemon: PathBuf) -> Self {
        Self {
            engine,
            duration,
            runs: 0,
            seed,
            daemon,
            environment: Vec::new(),
            sabotage: Vec::new(),
            faults: Fault::all(engine),
            panel: true,
            pace_ms: 20..120,
            instances: 60,
            keep_logs: true,
            settle_timeout: Duration::from_mins(2),
        }
    }

    /// Injects these faults only.
    #[must_use]
    pub fn faults(self, faults: &[Fault]) -> Self {
        Self { faults: faults.to_vec(), ..self }
    }

    /// Removes these safeguards from the daemons; the names are separated by commas.
    #[must_use]
    pub fn mutated(self, names: &str) -> Self {
        Self { keep_logs: false, ..self.environment("BILLING_MUTATION", names) }
    }

    /// Sets a variable in the daemons' environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }
}
