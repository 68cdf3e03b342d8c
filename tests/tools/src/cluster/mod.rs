//! The faults of a cluster: real daemons bill on Patroni's PostgreSQL while leaders die, etcd stops and connections freeze.
//!
//! [`run`] is one campaign. The hours and the wallets are counted by the model of [`crate::faults`], which shares no code with
//! billing. The daemon's share of each outage comes from the writes of an independent client.

mod campaign;
mod injections;
mod operator;
mod relay;
mod report;
mod servers;
mod share;
mod workload;

use std::{path::PathBuf, time::Duration};

pub use campaign::run;
pub use injections::Fault;
pub use report::Report;

/// The options of a campaign.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long faults are injected; one that has begun is finished.
    pub duration: Duration,
    /// The seed of all random choices.
    pub seed: u64,
    /// The program of a daemon: built with the feature `testing`.
    pub daemon: PathBuf,
    /// The faults to inject, each equally often.
    pub faults: Vec<Fault>,
    /// Whether a standby confirms each commit before the client does.
    pub synchronous: bool,
    /// Whether each fault is printed to the standard error when it is over.
    pub verbose: bool,
    /// Whether the logs are kept also if nothing is found.
    pub keep_logs: bool,
}
