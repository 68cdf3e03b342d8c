//! The campaign of the prepaid policy: real daemons warn, suspend and resume customers whose clock runs fast, while daemons are down,
//! receivers fail and customers pay.
//!
//! [`run`] is one campaign. `checks` finds what went wrong from what the receivers got and what the customers did, with no line of the
//! policy.

mod campaign;
mod checks;
mod customers;
mod receivers;
mod record;
mod report;

use std::{path::PathBuf, time::Duration};

pub use self::{campaign::run, report::Report};
use crate::{Engine, faults::Fault};

/// The options of a campaign.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each fault is injected or not, whatever the others are")]
pub struct Options {
    /// The database that the daemons share: two daemons on a file, or three on a server behind a proxy.
    pub engine: Engine,
    /// How long customers act and faults are injected.
    pub duration: Duration,
    /// It continues until so many organizations were suspended and resumed as well, up to a limit.
    pub least: u64,
    /// The seed of all random choices.
    pub seed: u64,
    /// The program of a daemon: built with the feature `testing`.
    pub daemon: PathBuf,
    /// The hours that pass in a second.
    pub hours_per_second: u32,
    /// Further variables of the daemons' environment.
    pub environment: Vec<(String, String)>,
    /// Statements that break the schema before the start.
    pub sabotage: Vec<String>,
    /// The faults of daemons and connections to inject.
    pub faults: Vec<Fault>,
    /// Whether all daemons are down now and then.
    pub has_outages: bool,
    /// Whether receivers fail, refuse and are slow now and then.
    pub has_failing_receivers: bool,
    /// Whether receivers are always slow, and never fail.
    pub has_slow_receivers: bool,
    /// Whether the daemons' logs are kept if anything is found.
    pub keep_logs: bool,
}

impl Options {
    /// The options of a campaign on the command line: an hour passes in a second.
    #[must_use]
    pub fn new(engine: Engine, duration: Duration, seed: u64, daemon: PathBuf) -> Self {
        let mut faults = vec![Fault::KillAny, Fault::Pause];
        if engine == Engine::Postgres {
            faults.extend([Fault::EndConnections, Fault::Cancel, Fault::Cut, Fault::LoseCommits]);
        }
        Self {
            engine,
            duration,
            least: 0,
            seed,
            daemon,
            hours_per_second: 1,
            environment: Vec::new(),
            sabotage: Vec::new(),
            faults,
            has_outages: true,
            has_failing_receivers: true,
            has_slow_receivers: false,
            keep_logs: true,
        }
    }

    /// Removes these safeguards from the daemons; the names are separated by commas.
    #[must_use]
    pub fn mutated(mut self, names: &str) -> Self {
        self.keep_logs = false;
        self.environment.push(("BILLING_MUTATION".to_owned(), names.to_owned()));
        self
    }
}
