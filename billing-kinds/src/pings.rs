//! A dead man's switch for jobs: somebody outside hears when a run starts, works or is given up, and raises the alarm when
//! nothing is heard any more.

use std::{
    collections::BTreeMap,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{JobContext, JobError, JobSpec, Middleware, Next, Outcome, RunRecord, RunStatus};
use serde::Deserialize;
use tracing::{debug, warn};

use crate::{Method, Request, Secret, params};

/// How many signs of one job may wait for a slow server. What does not fit is left out: silence is the alarm.
const WAITING: usize = 16;
/// How long what still waits may take in the end.
const LAST_SIGNS: Duration = Duration::from_secs(5);

/// Where a job's signs go.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ping {
    /// Asked for when an occurrence is done, and only then.
    pub url: Secret,
    /// Asked for when an attempt starts.
    #[serde(default)]
    pub start: Option<Secret>,
    /// Asked for when an occurrence is given up. A failure that is tried again is none yet.
    #[serde(default)]
    pub fail: Option<Secret>,
    /// For one request.
    #[serde(default = "ten_seconds", deserialize_with = "params::duration")]
    pub timeout: Duration,
}

/// The [`Middleware`] that gives signs of jobs. No run waits for one or fails by one.
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
#[derive(Debug)]
pub struct Pings {
    jobs: BTreeMap<String, Line>,
}

/// One job's thread, which sends in order.
#[derive(Debug)]
struct Line {
    signs: SyncSender<Sign>,
    /// Closes with the thread.
    ended: std::sync::Mutex<Receiver<()>>,
}

#[derive(Clone, Copy, Debug)]
enum Sign {
    Start,
    Done,
    GivenUp,
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

impl Pings {
    /// Signs of these jobs, by their names.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(jobs: impl IntoIterator<Item = (String, Ping)>) -> std::io::Result<Self> {
        let line = |(job, ping): (String, Ping)| {
            let (signs, waiting) = sync_channel(WAITING);
            let (end, ended) = channel();
            let name = job.clone();
            thread::Builder::new().name("pings".to_owned()).spawn(move || {
                for sign in waiting {
                    ping.send(&name, sign);
                }
                drop(end);
            })?;
            Ok((job, Line { signs, ended: std::sync::Mutex::new(ended) }))
        };
        Ok(Self { jobs: jobs.into_iter().map(line).collect::<std::io::Result<_>>()? })
    }

    fn give(&self, job: &str, sign: Sign) {
        let Some(line) = self.jobs.get(job) else { return };
        if let Err(TrySendError::Full(_)) = line.signs.try_send(sign) {
            warn!(job.name = %job, "the signs of job `{job}` wait for a slow server: one is left out");
        }
    }
}

#[async_trait]
impl Middleware for Pings {
    async fn run(&self, ctx: &JobContext, next: Next<'_>) -> Result<Outcome, JobError> {
        self.give(&ctx.occurrence.job, Sign::Start);
        next.run(ctx).await
    }

    fn settled(&self, _: &JobSpec, run: &RunRecord) {
        match run.status {
            RunStatus::Done => self.give(&run.job, Sign::Done),
            RunStatus::Dead => self.give(&run.job, Sign::GivenUp),
            _ => {}
        }
    }
}

impl Drop for Pings {
    /// Waits a little for what is still to be sent: the last sign of a daemon that stops should not be an alarm.
    fn drop(&mut self) {
        for line in std::mem::take(&mut self.jobs).into_values() {
            drop(line.signs);
            let ended = line.ended.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            if ended.recv_timeout(LAST_SIGNS) == Err(RecvTimeoutError::Timeout) {
                warn!("signs of jobs were not sent in time");
            }
        }
    }
}

impl Ping {
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
        let request =
            Request { url, method: Method::Get, headers: Vec::new(), body: None, timeout: self.timeout };
        match request.send() {
            Ok((200..300, _)) => debug!(job.name = %job, "gave a sign of job `{job}`"),
            Ok((status, _)) => {
                warn!(job.name = %job, status, "a sign of job `{job}` was answered with status {status}");
            }
            Err(error) => warn!(job.name = %job, %error, "no sign of job `{job}`: {error}"),
        }
    }
}
