//! The daemons of a campaign: started, killed, suspended, stopped, and started again, as an operator's
//! supervisor does.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    sync::{Mutex, watch},
    time::{sleep, timeout},
};

use crate::DAEMON;

const CONFIGURATION: &str = r#"
[daemon]
panel-billing = "off"
lease-ttl = "3s"
drain-timeout = "5s"

[[job]]
name = "billing"
kind = "billing"
schedule = { every = "1s" }
run-at-start = true
retry = { max-attempts = 5, backoff = "1s", max-backoff = "1s" }
params = { batch-instances = 8, max-catch-up-hours = 100000, spike-factor = "0", hand-back-after = "4s" }

[[job]]
name = "heartbeat"
kind = "heartbeat"
schedule = { every = "2s" }
scope = "node"
run-at-start = true
"#;

/// The clock by which billing is due: only the campaign moves it.
const CLOCK: &str = "SELECT now_micros AS now FROM campaign_clock";
/// How long a daemon may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);
const SUPERVISE_EVERY: Duration = Duration::from_millis(200);

/// All daemons of a campaign.
pub(super) struct Daemons {
    program: PathBuf,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    inner: Mutex<Inner>,
}

struct Inner {
    children: Vec<Option<Child>>,
    /// The exit codes of daemons that ended unexpectedly.
    exits: BTreeMap<String, u64>,
}

impl Daemons {
    /// Starts this many for the database at `url`, with `folder` for their files and logs.
    pub(super) async fn start(
        program: &Path,
        folder: &Path,
        url: &str,
        environment: &[(String, String)],
        count: usize,
    ) -> Self {
        std::fs::write(folder.join("jobs.toml"), CONFIGURATION)
            .expect("a file in a folder of ours is written");
        let own =
            [("DATABASE_URL", url), ("BILLING_CLOCK", CLOCK), ("LOG_LEVEL", "info"), (DAEMON, "faults")];
        let mut variables: Vec<(String, String)> =
            own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        variables.extend_from_slice(environment);
        let daemons = Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            environment: variables,
            inner: Mutex::new(Inner { children: Vec::new(), exits: BTreeMap::new() }),
        };
        for slot in 0..count {
            let child = daemons.spawn(slot);
            daemons.inner.lock().await.children.push(Some(child));
        }
        daemons
    }

    fn spawn(&self, slot: usize) -> Child {
        let log = self.folder.join(format!("daemon-{slot}.log"));
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log in a folder of ours is opened");
        let mut command = Command::new(&self.program);
        command
            .args(["run", "--config", "jobs.toml"])
            .current_dir(&self.folder)
            .env_clear()
            .env("TMPDIR", &self.folder)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            // Its other end closes with this process, however that ends.
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a log is opened twice"))
            .stderr(log)
            .kill_on_drop(true);
        command.spawn().expect("a daemon starts")
    }

    /// Starts another daemon for each that ended unexpectedly, until it is stopped.
    pub(super) async fn supervise(&self, stop: &watch::Receiver<bool>) {
        while !*stop.borrow() {
            sleep(SUPERVISE_EVERY).await;
            self.revive().await;
        }
    }

    async fn revive(&self) {
        let mut inner = self.inner.lock().await;
        let Inner { children, exits } = &mut *inner;
        for (slot, place) in children.iter_mut().enumerate() {
            if let Some(child) = place
                && let Ok(Some(status)) = child.try_wait()
            {
                *exits.entry(status.to_string()).or_default() += 1;
                *place = Some(self.spawn(slot));
            }
        }
    }

    /// The process ids of the running daemons.
    pub(super) async fn pids(&self) -> Vec<u32> {
        self.inner.lock().await.children.iter().flatten().filter_map(Child::id).collect()
    }

    /// Kills a daemon with `kill -9` and starts another; returns whether there was one.
    pub(super) async fn kill(&self, pid: u32) -> bool {
        let mut inner = self.inner.lock().await;
        for (slot, place) in inner.children.iter_mut().enumerate() {
            if let Some(child) = place
                && child.id() == Some(pid)
            {
                // It may have ended a moment ago.
                let _ = child.kill().await;
                *place = Some(self.spawn(slot));
                return true;
            }
        }
        false
    }

    /// Sends SIGTERM, waits for its end, and starts another; returns whether it was alive and ended in time.
    pub(super) async fn terminate(&self, pid: u32) -> bool {
        let mut inner = self.inner.lock().await;
        let slot = inner
            .children
            .iter()
            .position(|place| place.as_ref().is_some_and(|child| child.id() == Some(pid)));
        let Some((slot, mut child)) = slot.and_then(|slot| Some((slot, inner.children[slot].take()?))) else {
            return false;
        };
        drop(inner);
        signal(pid, Signal::TERM);
        let ended = timeout(STOP_TIMEOUT, child.wait()).await.is_ok();
        drop(child);
        self.inner.lock().await.children[slot] = Some(self.spawn(slot));
        ended
    }

    /// Ends all of them; returns the exits that were unexpected, and how many did not end in time.
    pub(super) async fn stop(&self) -> (BTreeMap<String, u64>, u64) {
        let mut inner = self.inner.lock().await;
        let mut stuck = 0;
        for pid in inner.children.iter().flatten().filter_map(Child::id) {
            signal(pid, Signal::CONT);
            signal(pid, Signal::TERM);
        }
        for child in inner.children.iter_mut().flatten() {
            match timeout(STOP_TIMEOUT, child.wait()).await {
                Ok(_) => {}
                Err(_) => stuck += 1,
            }
        }
        inner.children.clear();
        (inner.exits.clone(), stuck)
    }
}

/// Sends a signal to a process that may have ended.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // A process that has ended needs none.
        let _ = kill_process(pid, signal);
    }
}
