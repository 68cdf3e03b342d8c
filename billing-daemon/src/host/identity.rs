//! The identity of this process among the daemons that share a database.

use std::time::Duration;

use billing_scheduler::{Clock, SystemClock};
use rand::RngExt as _;
use serde_json::{Value, json};

use crate::host::platform::{self, Platform};

/// This process, as the panel's table of daemons shows it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `{hostname}-{pid}-{random}`: containers with one hostname and PID 1 never share it.
    pub daemon_id: String,
    /// The host's name.
    pub hostname: String,
    /// The metadata in the process's row of the panel's table of daemons.
    pub metadata: Value,
}

impl Identity {
    /// Returns a new identity for this process.
    #[must_use]
    pub fn from_process(billing_interval: Option<Duration>) -> Self {
        let hostname = platform::hostname();
        let pid = std::process::id();
        let random: u64 = rand::rng().random_range(0..1 << 48);
        Self {
            daemon_id: format!("{hostname}-{pid}-{random:012x}"),
            metadata: json!({
                "os": Platform::current().unwrap_or(Platform::Linux).to_string(),
                "hostname": hostname,
                "pid": pid,
                "billingIntervalMinutes": billing_interval.map(minutes),
                "startTime": SystemClock.now(),
                "version": env!("CARGO_PKG_VERSION"),
            }),
            hostname,
        }
    }

    /// Sets the time between two runs of billing, which a reloaded configuration may change.
    pub fn set_billing_interval(&mut self, interval: Option<Duration>) {
        self.metadata["billingIntervalMinutes"] = json!(interval.map(minutes));
    }
}

fn minutes(interval: Duration) -> u64 {
    interval.as_secs() / 60
}

/// Returns the operator's user name, also behind sudo, and the host's name. Where the environment names no user, as under cron or
/// systemd, the id of the user takes the place of the name.
#[must_use]
pub fn operator_name() -> String {
    let set = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let name = ["SUDO_USER", "USER", "LOGNAME", "USERNAME"].iter().find_map(set);
    let name = name.unwrap_or_else(|| format!("uid {}", platform::uid()));
    format!("{name}@{}", platform::hostname())
}
