//! Ours: the daemon's own command `bill` in a separate process, on a clock that the benchmark sets.

use std::{fs, path::PathBuf};

use serde::Deserialize;
use tempfile::TempDir;
use tokio::process::Command;

use super::{Options, fleet};
use crate::DAEMON;

#[derive(Debug)]
pub(super) struct Ours {
    program: PathBuf,
    url: String,
    folder: TempDir,
}

/// The result of one run.
#[derive(Debug, Deserialize)]
pub(super) struct Bill {
    pub(super) charged: u64,
    pub(super) seconds: f64,
    #[serde(skip)]
    pub(super) peak_mb: f64,
    /// The part of them that the spike guard took; 0 for the first run.
    #[serde(skip)]
    pub(super) spike_guard_seconds: f64,
}

impl Ours {
    pub(super) fn new(options: &Options, url: String) -> Self {
        let folder = tempfile::Builder::new().prefix("billing-bench-").tempdir().expect("a folder is made");
        let mut params = String::new();
        for (name, value) in [("connections", options.connections), ("batch-instances", options.batch)] {
            params.extend(value.map(|value| format!("{name} = {value}\n")));
        }
        let jobs = format!(
            "[daemon]\npanel-billing = \"off\"\n\n[[job]]\nname = \"billing\"\nkind = \"billing\"\n\
             schedule = {{ every = \"1h\" }}\n\n[job.params]\nmax-catch-up-hours = 1000\n{params}"
        );
        fs::write(folder.path().join("jobs.toml"), jobs).expect("a file in a folder of ours is written");
        Self { program: options.program.clone(), url, folder }
    }

    /// Bills every hour that has ended by the `hour`th.
    pub(super) async fn bill(&self, hour: u32) -> Bill {
        let clock = format!("SELECT {} AS now", fleet::as_of_micros(hour));
        let output = Command::new(&self.program)
            .args(["bill", "--json"])
            .current_dir(self.folder.path())
            .env_clear()
            .envs([("DATABASE_URL", self.url.as_str()), ("BILLING_CLOCK", &clock), (DAEMON, "bench-billing")])
            .env("LOG_LEVEL", "warn,billing_jobs::billing::spike_guard=debug")
            .kill_on_drop(true)
            .output()
            .await
            .expect("this program starts again");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "billing failed:\n{out}\n{err}");
        let mut bill: Bill =
            serde_json::from_str(out.trim()).unwrap_or_else(|error| panic!("{error} in {out}"));
        bill.peak_mb = printed_peak_mib(&err);
        let spike_guard = err.lines().find_map(|line| line.strip_suffix(" ms")?.rsplit(' ').next());
        bill.spike_guard_seconds =
            spike_guard.map_or(0.0, |ms| ms.parse::<f64>().expect("a number of ms") / 1000.0);
        bill
    }
}

/// The peak memory of this process, as Linux reports it.
#[must_use]
pub fn peak_memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or("VmHWM: 0 kB").to_owned()
}

/// The peak memory in MiB that a process printed at its end, among its other output.
pub(crate) fn printed_peak_mib(err: &str) -> f64 {
    let peak = err.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the process prints its peak");
    let kib: f64 = peak.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kib / 1024.0
}
