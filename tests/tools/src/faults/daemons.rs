//! The daemons of a campaign: started, killed, suspended, stopped, and started again, as an operator's
//! supervisor does.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
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

/// The configuration of a campaign on one server.
pub(super) const CONFIGURATION: &str = r#"
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

/// The clock by which billing is due in a campaign on one server: only the campaign moves it.
pub(crate) const CLOCK: &str = "SELECT now_micros AS now FROM campaign_clock";
/// How long a daemon may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);
const SUPERVISE_EVERY: Duration = Duration::from_millis(200);

/// What the daemons of a campaign are started with.
pub(crate) struct Setup<'a> {
    pub(crate) program: &'a Path,
    /// The folder of their files and logs.
    pub(crate) folder: &'a Path,
    pub(crate) configuration: &'a str,
    /// The query that returns the time up to which billing is due.
    pub(crate) clock: &'a str,
    /// Further variables of their environment.
    pub(crate) environment: &'a [(String, String)],
    /// One daemon is started for each URL.
    pub(crate) urls: &'a [String],
}

/// All daemons of a campaign.
pub(crate) struct Daemons {
    program: PathBuf,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    urls: Vec<String>,
    inner: Mutex<Inner>,
}

struct Inner {
    children: Vec<Option<Child>>,
    /// Whether an outage lasts, in which none is started.
    down: bool,
    /// The exit codes of daemons that ended unexpectedly.
    exits: BTreeMap<String, u64>,
}

impl Daemons {
    /// Starts all of them.
    pub(crate) async fn start(setup: &Setup<'_>) -> Self {
        fs::write(setup.folder.join("jobs.toml"), setup.configuration)
            .expect("a file in a folder of ours is written");
        let own = [("BILLING_CLOCK", setup.clock), ("LOG_LEVEL", "info"), (DAEMON, "faults")];
        let mut variables: Vec<(String, String)> =
            own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        variables.extend_from_slice(setup.environment);
        let daemons = Self {
            program: setup.program.to_owned(),
            folder: setup.folder.to_owned(),
            environment: variables,
            urls: setup.urls.to_owned(),
            inner: Mutex::new(Inner { children: Vec::new(), down: false, exits: BTreeMap::new() }),
        };
        for slot in 0..setup.urls.len() {
            let child = daemons.spawn(slot);
            daemons.inner.lock().await.children.push(Some(child));
        }
        daemons
    }

    fn spawn(&self, slot: usize) -> Child {
        // As if each daemon ran on a separate host: its notes about the database are not those of the others.
        let state = self.folder.join(format!("state-{slot}"));
        fs::create_dir_all(&state).expect("a folder in a folder of ours is made");
        let log = format!("daemon-{slot}.log");
        self.command(slot, &["run"], &log).env("STATE_DIRECTORY", state).spawn().expect("a daemon starts")
    }

    /// The program with these arguments, on the database of this daemon.
    fn command(&self, slot: usize, arguments: &[&str], log: &str) -> Command {
        let log = OpenOptions::new().create(true).append(true).open(self.folder.join(log));
        let log = log.expect("a log in a folder of ours is opened");
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .args(["--config", "jobs.toml"])
            .current_dir(&self.folder)
            .env_clear()
            .env("TMPDIR", &self.folder)
            .env("DATABASE_URL", &self.urls[slot])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            // Its other end closes with this process, however that ends.
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a log is opened twice"))
            .stderr(log)
            .kill_on_drop(true);
        command
    }

    /// Runs a command of an operator on the database of the first daemon; returns whether it succeeded.
    pub(crate) async fn operate(&self, arguments: &[&str]) -> bool {
        let mut child = self.command(0, arguments, "operator.log").spawn().expect("a command starts");
        // Waiting would close the input, and the program would abort.
        let input = child.stdin.take();
        let ended = timeout(STOP_TIMEOUT, child.wait()).await;
        drop(input);
        ended.is_ok_and(|ended| ended.is_ok_and(|status| status.success()))
    }

    /// Starts another daemon for each that ended unexpectedly, until it is stopped.
    pub(crate) async fn supervise(&self, stop: &watch::Receiver<bool>) {
        while !*stop.borrow() {
            sleep(SUPERVISE_EVERY).await;
            self.revive().await;
        }
    }

    async fn revive(&self) {
        let mut inner = self.inner.lock().await;
        let Inner { children, exits, .. } = &mut *inner;
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
    pub(crate) async fn pids(&self) -> Vec<u32> {
        self.inner.lock().await.children.iter().flatten().filter_map(Child::id).collect()
    }

    /// Kills a daemon with `kill -9` and starts another; returns whether there was one.
    pub(crate) async fn kill(&self, pid: u32) -> bool {
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
    pub(crate) async fn terminate(&self, pid: u32) -> bool {
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
        let ended = ends(&mut child).await;
        drop(child);
        let mut inner = self.inner.lock().await;
        if !inner.down {
            inner.children[slot] = Some(self.spawn(slot));
        }
        ended
    }

    /// Kills all of them with `kill -9`, and starts none until [`Daemons::end_outage`].
    pub(crate) async fn begin_outage(&self) {
        let mut inner = self.inner.lock().await;
        inner.down = true;
        for child in inner.children.iter_mut().flatten() {
            // It may have ended a moment ago.
            let _ = child.kill().await;
        }
        inner.children.iter_mut().for_each(|place| *place = None);
    }

    /// Starts all of them again.
    pub(crate) async fn end_outage(&self) {
        let mut inner = self.inner.lock().await;
        inner.down = false;
        for (slot, place) in inner.children.iter_mut().enumerate() {
            *place = Some(self.spawn(slot));
        }
    }

    /// Sends SIGTERM to all at once, and starts another one for each that has ended.
    pub(crate) async fn restart_all(&self) {
        let mut inner = self.inner.lock().await;
        for pid in inner.children.iter().flatten().filter_map(Child::id) {
            signal(pid, Signal::TERM);
        }
        for (slot, place) in inner.children.iter_mut().enumerate() {
            if let Some(mut child) = place.take() {
                // One that does not end in time is killed when it is dropped.
                ends(&mut child).await;
            }
            *place = Some(self.spawn(slot));
        }
    }

    /// Ends all of them; returns the exits that were unexpected, and how many did not end in time.
    pub(crate) async fn stop(&self) -> (BTreeMap<String, u64>, u64) {
        let mut inner = self.inner.lock().await;
        let mut stuck = 0;
        for pid in inner.children.iter().flatten().filter_map(Child::id) {
            signal(pid, Signal::CONT);
            signal(pid, Signal::TERM);
        }
        for child in inner.children.iter_mut().flatten() {
            if !ends(child).await {
                stuck += 1;
            }
        }
        inner.children.clear();
        (inner.exits.clone(), stuck)
    }
}

/// Waits for the end of a daemon that got SIGTERM; returns whether it ended in time.
async fn ends(child: &mut Child) -> bool {
    // Waiting closes the input, and the daemon would abort instead of completing its run.
    let input = child.stdin.take();
    let ended = timeout(STOP_TIMEOUT, child.wait()).await.is_ok();
    drop(input);
    ended
}

/// Sends a signal to a process that may have ended.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // A process that has ended needs none.
        let _ = kill_process(pid, signal);
    }
}
