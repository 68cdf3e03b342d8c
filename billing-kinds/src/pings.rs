//! A dead man's switch for jobs: somebody outside hears when a run starts, works or is given up, and raises the alarm when
//! nothing is heard any more.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use billing_scheduler::{JobContext, JobError, JobSpec, Middleware, Next, Outcome, RunRecord, RunStatus};
use schemars::JsonSchema;
use serde::Deserialize;
use tracing::{debug, warn};

use crate::{Method, Request, Secret, checked, concealed};

/// How many signs of one job may wait for a slow server. What does not fit is left out: silence is the alarm.
const WAITING: usize = 16;
/// How long what still waits may take in the end.
const LAST_SIGNS: Duration = Duration::from_secs(5);

/// Where a job's signs go.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ping {
    /// Asked for when an occurrence is done, and only then.
    #[serde(deserialize_with = "checked::place")]
    pub url: Secret,
    /// Asked for when an attempt starts.
    #[serde(default, deserialize_with = "checked::optional_place")]
    pub start: Option<Secret>,
    /// Asked for when an occurrence is given up. A failure that is tried again is none yet.
    #[serde(default, deserialize_with = "checked::optional_place")]
    pub fail: Option<Secret>,
    /// How long one request may take.
    #[serde(default = "ten_seconds", with = "billing_scheduler::duration")]
    #[schemars(with = "String", regex(pattern = billing_scheduler::duration::PATTERN))]
    pub timeout: Duration,
}

/// The [`Middleware`] that gives signs of jobs. No run waits for one or fails by one. A clone gives the same signs: whoever keeps
/// one may say of other jobs, or elsewhere, while they run.
///
/// ```
/// use billing_kinds::{Ping, Pings, Secret};
/// use billing_scheduler::{Registry, serde_json::json};
///
/// let billing: Ping = billing_scheduler::serde_json::from_value(json!({
///     "url": { "env": "BILLING_PING_URL" },
///     "fail": "https://hc-ping.com/2c1f6e0a/fail",
/// }))?;
/// let mut registry = Registry::new();
/// registry.layer(Pings::new([("billing".to_owned(), billing)])?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pings {
    lines: Arc<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    by_job: Mutex<BTreeMap<String, Line>>,
    /// What is no longer used closes these when it has sent its last sign.
    retired: Mutex<Vec<Receiver<()>>>,
}

/// One job's thread, which sends in order.
#[derive(Debug)]
struct Line {
    ping: Ping,
    signs: SyncSender<Sign>,
    /// Closes with the thread.
    ended: Receiver<()>,
}

#[derive(Clone, Copy, Debug)]
enum Sign {
    Start,
    Done,
    GivenUp,
}

fn ten_seconds() -> Duration {
    Ping::TIMEOUT
}

impl Pings {
    /// Signs of these jobs, by their names.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(jobs: impl IntoIterator<Item = (String, Ping)>) -> io::Result<Self> {
        let pings = Self { lines: Arc::default() };
        pings.replace(jobs)?;
        Ok(pings)
    }

    /// Signs of these jobs from now on, and of no others. What was to be sent before is still sent to where it was to go. Returns
    /// the names of the jobs for which something is different.
    ///
    /// # Errors
    /// The system gives no thread. Nothing has changed then.
    pub fn replace(&self, jobs: impl IntoIterator<Item = (String, Ping)>) -> io::Result<Vec<String>> {
        let jobs: BTreeMap<String, Ping> = jobs.into_iter().collect();
        let mut lines = lock(&self.lines.by_job);
        let is_kept = |job: &str, ping: &Ping| lines.get(job).is_some_and(|line| line.ping == *ping);
        let new = jobs.iter().filter(|(job, ping)| !is_kept(job, ping));
        let new: Vec<_> = new
            .map(|(job, ping)| Ok((job.clone(), Line::start(job.clone(), ping.clone())?)))
            .collect::<io::Result<_>>()?;
        let mut changed: Vec<_> = new.iter().map(|(job, _)| job.clone()).collect();
        changed.extend(lines.keys().filter(|job| !jobs.contains_key(*job)).cloned());
        changed.sort_unstable();
        let old: Vec<_> = changed.iter().filter_map(|job| lines.remove(job)).collect();
        lock(&self.lines.retired).extend(old.into_iter().map(|line| line.ended));
        lines.extend(new);
        Ok(changed)
    }

    /// Waits a little for what is still to be sent, and sends nothing after: the last sign of a daemon that stops should not be
    /// an alarm. Blocks; dropping the last clone does the same.
    pub fn close(&self) {
        self.lines.close();
    }

    fn give(&self, job: &str, sign: Sign) {
        let lines = lock(&self.lines.by_job);
        let Some(line) = lines.get(job) else { return };
        if let Err(TrySendError::Full(_)) = line.signs.try_send(sign) {
            warn!(job.name = %job, "the signs of job `{job}` wait for a slow server: one is left out");
        }
    }
}

impl Line {
    fn start(job: String, ping: Ping) -> io::Result<Self> {
        let (signs, waiting) = sync_channel(WAITING);
        let (end, ended) = channel();
        let to = ping.clone();
        thread::Builder::new().name("pings".to_owned()).spawn(move || {
            for sign in waiting {
                to.send(&job, sign);
            }
            drop(end);
        })?;
        Ok(Self { ping, signs, ended })
    }
}

impl Lines {
    fn close(&self) {
        let mut retired = std::mem::take(&mut *lock(&self.retired));
        // Without its sender, a thread ends after its last sign.
        retired.extend(std::mem::take(&mut *lock(&self.by_job)).into_values().map(|line| line.ended));
        let until = Instant::now() + LAST_SIGNS;
        for ended in retired {
            let left = until.saturating_duration_since(Instant::now());
            if ended.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                warn!("signs of jobs were not sent in time");
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Middleware for Pings {
    async fn run(&self, ctx: &JobContext, next: Next<'_>) -> Result<Outcome, JobError> {
        self.give(&ctx.occurrence.job, Sign::Start);
        next.run(ctx).await
    }

    fn on_outcome(&self, _: &JobSpec, run: &RunRecord) {
        match run.status {
            RunStatus::Done => self.give(&run.job, Sign::Done),
            RunStatus::Dead => self.give(&run.job, Sign::GivenUp),
            _ => {}
        }
    }
}

impl Ping {
    /// How long one request may take if nothing else is said.
    pub const TIMEOUT: Duration = Duration::from_secs(10);

    /// What of its URLs the environment and files say now: never to be shown, wherever it turns up.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        let places = [Some(&self.url), self.start.as_ref(), self.fail.as_ref()];
        let urls = places.into_iter().flatten().filter(|place| !place.is_text());
        let urls = urls.filter_map(|place| place.read().ok());
        urls.flat_map(|url| concealed::of_url(&url)).collect()
    }

    fn send(&self, job: &str, sign: Sign) {
        let place = match sign {
            Sign::Start => self.start.as_ref(),
            Sign::Done => Some(&self.url),
            Sign::GivenUp => self.fail.as_ref(),
        };
        let Some(place) = place else { return };
        let url = match place.read() {
            Ok(url) => url,
            Err(error) => {
                warn!(job.name = %job, %error, "no sign of job `{job}`: {error}");
                return;
            }
        };
        let request = Request {
            url,
            method: Method::Get,
            headers: Vec::new(),
            body: None,
            timeout: self.timeout,
            ca_file: None,
            kept: 0,
        };
        match request.send().map(|answer| answer.status) {
            Ok(200..300) => debug!(job.name = %job, "gave a sign of job `{job}`"),
            Ok(status) => {
                warn!(job.name = %job, status, "a sign of job `{job}` was answered with status {status}");
            }
            Err(error) => warn!(job.name = %job, %error, "no sign of job `{job}`: {error}"),
        }
    }
}
