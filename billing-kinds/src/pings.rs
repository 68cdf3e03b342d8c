//! Pings of a monitoring service with a dead man's switch, which alerts if no ping arrives.

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

/// The number of pings of one job that may wait for a slow server. Further ones are dropped: a missing ping is the alert.
const QUEUE_LENGTH: usize = 16;
/// The time to send the waiting pings at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The URLs to request for one job.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(rename = "ping")]
pub struct Ping {
    /// Requested when an occurrence succeeds, and only then.
    #[serde(deserialize_with = "checked::secret_url")]
    pub url: Secret,
    /// Requested when an attempt starts.
    #[serde(default, deserialize_with = "checked::optional_secret_url")]
    pub start: Option<Secret>,
    /// Requested when the last attempt at an occurrence fails.
    #[serde(default, deserialize_with = "checked::optional_secret_url")]
    pub fail: Option<Secret>,
    /// The limit for one request; 10s by default.
    #[serde(default = "ten_seconds", with = "billing_scheduler::duration")]
    #[schemars(with = "String", regex(pattern = billing_scheduler::duration::PATTERN))]
    pub timeout: Duration,
}

/// The [`Middleware`] that sends pings. No run waits for a ping or fails because of one. Clones share their jobs, so that the owner of
/// a clone can [replace](Self::replace) them while jobs run.
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
    senders: Arc<PingSenders>,
}

#[derive(Debug, Default)]
struct PingSenders {
    by_job: Mutex<BTreeMap<String, PingSender>>,
    /// Closed by the threads of replaced jobs after their last ping.
    retired: Mutex<Vec<Receiver<()>>>,
}

/// The thread of one job, which sends its pings in order.
#[derive(Debug)]
struct PingSender {
    ping: Ping,
    events: SyncSender<PingEvent>,
    /// Closed when the thread ends.
    ended: Receiver<()>,
}

#[derive(Clone, Copy, Debug)]
enum PingEvent {
    Start,
    Done,
    GivenUp,
}

fn ten_seconds() -> Duration {
    Ping::TIMEOUT
}

impl Pings {
    /// Returns a middleware that sends the pings of these jobs, by their names.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn new(jobs: impl IntoIterator<Item = (String, Ping)>) -> io::Result<Self> {
        let pings = Self { senders: Arc::default() };
        pings.replace(jobs)?;
        Ok(pings)
    }

    /// Replaces the jobs and their pings, and returns the names of the jobs that changed. Waiting pings are still sent to their former
    /// URLs.
    ///
    /// # Errors
    /// The system cannot start a thread. Nothing has changed then.
    pub fn replace(&self, jobs: impl IntoIterator<Item = (String, Ping)>) -> io::Result<Vec<String>> {
        let jobs: BTreeMap<String, Ping> = jobs.into_iter().collect();
        let mut senders = lock(&self.senders.by_job);
        let is_kept = |job: &str, ping: &Ping| senders.get(job).is_some_and(|sender| sender.ping == *ping);
        let new = jobs.iter().filter(|(job, ping)| !is_kept(job, ping));
        let new: Vec<_> = new
            .map(|(job, ping)| Ok((job.clone(), PingSender::start(job.clone(), ping.clone())?)))
            .collect::<io::Result<_>>()?;
        let mut changed: Vec<_> = new.iter().map(|(job, _)| job.clone()).collect();
        changed.extend(senders.keys().filter(|job| !jobs.contains_key(*job)).cloned());
        changed.sort_unstable();
        let old: Vec<_> = changed.iter().filter_map(|job| senders.remove(job)).collect();
        lock(&self.senders.retired).extend(old.into_iter().map(|sender| sender.ended));
        senders.extend(new);
        Ok(changed)
    }

    /// Waits up to five seconds for the waiting pings, and sends none afterwards: a daemon that stops should not cause an alert.
    /// Blocks its thread; dropping the last clone does the same.
    pub fn close(&self) {
        self.senders.close();
    }

    fn send(&self, job: &str, event: PingEvent) {
        let senders = lock(&self.senders.by_job);
        let Some(sender) = senders.get(job) else { return };
        if let Err(TrySendError::Full(_)) = sender.events.try_send(event) {
            warn!(job.name = %job, "dropped a ping of job `{job}`: earlier ones wait for a slow server");
        }
    }
}

impl PingSender {
    fn start(job: String, ping: Ping) -> io::Result<Self> {
        let (events, waiting) = sync_channel(QUEUE_LENGTH);
        let (end, ended) = channel();
        let to = ping.clone();
        thread::Builder::new().name("pings".to_owned()).spawn(move || {
            for event in waiting {
                to.send(&job, event);
            }
            drop(end);
        })?;
        Ok(Self { ping, events, ended })
    }
}

impl PingSenders {
    fn close(&self) {
        let mut retired = std::mem::take(&mut *lock(&self.retired));
        // Without its sender, a thread ends after its last ping.
        retired.extend(std::mem::take(&mut *lock(&self.by_job)).into_values().map(|sender| sender.ended));
        let until = Instant::now() + SHUTDOWN_TIMEOUT;
        for ended in retired {
            let left = until.saturating_duration_since(Instant::now());
            if ended.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                warn!("dropped pings of jobs that were not sent in time");
            }
        }
    }
}

impl Drop for PingSenders {
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
        self.send(&ctx.occurrence.job, PingEvent::Start);
        next.run(ctx).await
    }

    fn on_outcome(&self, _: &JobSpec, run: &RunRecord) {
        match run.status {
            RunStatus::Done => self.send(&run.job, PingEvent::Done),
            RunStatus::Dead => self.send(&run.job, PingEvent::GivenUp),
            _ => {}
        }
    }
}

impl Ping {
    /// The default of `timeout`.
    pub const TIMEOUT: Duration = Duration::from_secs(10);

    /// Returns the secrets in the URLs that come from the environment or a file, to be masked in every output.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        let sources = [Some(&self.url), self.start.as_ref(), self.fail.as_ref()];
        let urls = sources.into_iter().flatten().filter(|source| !source.is_text());
        let urls = urls.filter_map(|source| source.read().ok());
        urls.flat_map(|url| concealed::of_url(&url)).collect()
    }

    fn send(&self, job: &str, event: PingEvent) {
        let source = match event {
            PingEvent::Start => self.start.as_ref(),
            PingEvent::Done => Some(&self.url),
            PingEvent::GivenUp => self.fail.as_ref(),
        };
        let Some(source) = source else { return };
        let url = match source.read() {
            Ok(url) => url,
            Err(error) => {
                warn!(job.name = %job, %error, "cannot send a ping of job `{job}`: {error}");
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
        match request.send().map(|response| response.status) {
            Ok(200..300) => debug!(job.name = %job, "sent a ping of job `{job}`"),
            Ok(status) => {
                warn!(job.name = %job, status, "the server rejected a ping of job `{job}` with status {status}");
            }
            Err(error) => warn!(job.name = %job, %error, "cannot send a ping of job `{job}`: {error}"),
        }
    }
}
