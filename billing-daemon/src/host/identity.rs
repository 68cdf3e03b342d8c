//! Who this process is, among all daemons that share a database.

use billing_scheduler::{Clock, SystemClock};
use rand::RngExt as _;
use serde_json::{Value, json};

use crate::host::platform::{self, Platform};

/// This process, as the panel's table of daemons shows it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `{hostname}-{pid}-{random}`: containers with one hostname and PID 1 never share it.
    pub instance: String,
    /// Of this machine.
    pub hostname: String,
    /// The row's metadata about the process.
    pub metadata: Value,
}

impl Identity {
    /// A new one for this process.
    #[must_use]
    pub fn of_process(billing_interval_minutes: Option<u64>) -> Self {
        let hostname = platform::hostname();
        let pid = std::process::id();
        let random: u64 = rand::rng().random_range(0..1 << 48);
        Self {
            instance: format!("{hostname}-{pid}-{random:012x}"),
            metadata: json!({
                "os": Platform::current().unwrap_or(Platform::Linux).to_string(),
                "hostname": hostname,
                "pid": pid,
                "billingIntervalMinutes": billing_interval_minutes,
                "startTime": SystemClock.now(),
                "version": env!("CARGO_PKG_VERSION"),
            }),
            hostname,
        }
    }

    /// Since a configuration was read again, billing has another time between two runs, or none.
    pub fn set_billing_interval(&mut self, minutes: Option<u64>) {
        self.metadata["billingIntervalMinutes"] = json!(minutes);
    }
}

/// The operator, also behind sudo, and the host. Where the environment names no user, as under cron or systemd, the number of the
/// user counts.
#[must_use]
pub fn operator_name() -> String {
    let set = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let name = ["SUDO_USER", "USER", "LOGNAME", "USERNAME"].iter().find_map(set);
    let name = name.unwrap_or_else(|| format!("uid {}", platform::uid()));
    format!("{name}@{}", platform::hostname())
}
