//! The job interface: what a plugin implements, and the context of one run.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::{
    clock::{Clock, ManualClock},
    mask::Mask,
};

/// Any error of a job.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A piece of recurring work.
#[async_trait]
pub trait Job: Send + Sync + 'static {
    /// Runs one occurrence. It may be called again for the same one, after a crash, an interruption or a failure: be idempotent,
    /// and derive everything from `ctx.occurrence`. Check [`JobContext::stop_requested`] between steps, and return
    /// [`Outcome::Interrupted`] if it returns a reason.
    ///
    /// # Errors
    /// [`JobError::Retry`] if another attempt may succeed, [`JobError::Unavailable`] if it cannot before a service is available
    /// again, [`JobError::Fatal`] if none can.
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError>;
}

/// A job and a scheduled time: the identity of a run, however late it starts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Occurrence {
    /// The job's name in the configuration.
    pub job: String,
    /// The scheduled time, in whole seconds.
    pub scheduled_at: DateTime<Utc>,
}

impl fmt::Display for Occurrence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` of {}", self.job, self.scheduled_at.format("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// The number of a claim of a job's lease, greater than every earlier one. Work is committed only under the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FencingToken(pub i64);

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The result of a run that did not fail.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The occurrence is finished.
    Done {
        /// The number of processed items, for the history.
        items: u64,
        /// The job's own figures, stored with the run's record.
        details: serde_json::Value,
    },
    /// The run stopped on request: the same occurrence runs again, and no attempt is counted.
    Interrupted {
        /// The number of items processed before the stop.
        items: u64,
    },
}

impl Outcome {
    /// Returns a finished outcome without details.
    #[must_use]
    pub fn done(items: u64) -> Self {
        Self::Done { items, details: serde_json::Value::Null }
    }
}

/// The failure of a run.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A failure after which another attempt may succeed.
    #[error("{0}")]
    Retry(#[source] BoxError),
    /// A service that the job needs is unavailable, such as its database. The run is repeated every second for as long as that
    /// lasts, whatever the retry policy is, and counts as the same attempt.
    #[error("{0}")]
    Unavailable(#[source] BoxError),
    /// A failure after which no attempt can succeed: the occurrence becomes a dead letter.
    #[error("{0}")]
    Fatal(#[source] BoxError),
}

impl JobError {
    /// Returns a failure that is retried.
    pub fn retry(error: impl Into<BoxError>) -> Self {
        Self::Retry(error.into())
    }

    /// Returns the failure of an unavailable service.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        Self::Unavailable(error.into())
    }

    /// Returns a failure that is not retried.
    pub fn fatal(error: impl Into<BoxError>) -> Self {
        Self::Fatal(error.into())
    }
}

/// Why a run is requested to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The process is shutting down.
    Drain,
    /// The job's lease is lost or about to expire: another process may start the job.
    LeaseLost,
    /// The run exceeded its timeout.
    Timeout,
    /// An operator cancelled the run.
    Cancelled,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drain => "the daemon is shutting down",
            Self::LeaseLost => "the lease of the job is lost",
            Self::Timeout => "the run exceeded its timeout",
            Self::Cancelled => "the run was cancelled",
        })
    }
}

/// Requests a run to stop, and sets the deadline of its lease.
#[derive(Clone, Debug)]
pub struct StopHandle {
    reason: watch::Sender<Option<StopReason>>,
    /// Until when the run may trust its lease, by [`Clock::monotonic`], or [`STOPPED`]: a run that is not stopped reads nothing else.
    runs_until_ms: Arc<AtomicU64>,
}

/// The deadline of a run that was requested to stop: it has always passed.
const STOPPED: u64 = 0;

impl StopHandle {
    /// Returns a handle without a stop request and without a deadline.
    #[must_use]
    pub fn new() -> Self {
        Self { reason: watch::Sender::new(None), runs_until_ms: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// Requests the run to stop. The first reason is kept.
    pub fn stop(&self, reason: StopReason) {
        self.reason.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(reason);
                // Within the lock of the reason, so a reader that sees one of them sees the other.
                self.runs_until_ms.store(STOPPED, Ordering::SeqCst);
            }
            first
        });
    }

    /// Returns when the run is requested to stop for this reason.
    #[cfg(feature = "runtime")]
    pub(crate) async fn requested(&self, expected: StopReason) {
        // The sender lives as long as this handle.
        let _ = self.reason.subscribe().wait_for(|reason| *reason == Some(expected)).await;
    }

    /// Requests the run to stop from `deadline` on, by [`Clock::monotonic`], because its lease may have expired.
    pub fn trust_lease_until(&self, deadline: Duration) {
        let millis = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX).max(STOPPED + 1);
        let unless_stopped = |until| (until != STOPPED).then_some(millis);
        let _ = self.runs_until_ms.fetch_update(Ordering::SeqCst, Ordering::SeqCst, unless_stopped);
    }
}

impl Default for StopHandle {
    fn default() -> Self {
        Self::new()
    }
}

/// The context of one run.
#[derive(Clone, Debug)]
pub struct JobContext {
    /// The job's name and the scheduled time.
    pub occurrence: Occurrence,
    /// The id of the run's record.
    pub run_id: Uuid,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The fencing token under which the run may write.
    pub fencing_token: FencingToken,
    /// The control request that the run answers, or the id of the queued job; `None` if its scheduled time started it.
    pub request_id: Option<Uuid>,
    payload: Arc<serde_json::Value>,
    clock: Arc<dyn Clock>,
    stop: StopHandle,
    reported: Arc<Mutex<serde_json::Value>>,
    mask: Arc<Mutex<Mask>>,
    #[expect(dead_code, reason = "held for its drop")]
    held: Option<Arc<oneshot::Sender<()>>>,
}

impl JobContext {
    /// Returns the context of a new run.
    #[must_use]
    pub fn new(
        occurrence: Occurrence,
        attempt: u32,
        fencing_token: FencingToken,
        clock: Arc<dyn Clock>,
        stop: StopHandle,
    ) -> Self {
        let run_id = Uuid::now_v7();
        Self {
            occurrence,
            run_id,
            attempt,
            fencing_token,
            request_id: None,
            payload: Arc::default(),
            clock,
            stop,
            reported: Arc::default(),
            mask: Arc::default(),
            held: None,
        }
    }

    /// Sets the control request that the run answers.
    #[must_use]
    pub fn with_request_id(self, request_id: Option<Uuid>) -> Self {
        Self { request_id, ..self }
    }

    /// Sets the data of a queued job.
    #[must_use]
    pub fn with_payload(self, payload: serde_json::Value) -> Self {
        Self { payload: Arc::new(payload), ..self }
    }

    /// Returns the decoded data of a queued job; a scheduled run has `null`.
    ///
    /// # Errors
    /// [`JobError::Fatal`] if the data cannot be decoded.
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T, JobError> {
        T::deserialize(&*self.payload)
            .map_err(|error| JobError::fatal(format!("cannot decode the payload: {error}")))
    }

    /// Returns a key for receivers that discard repetitions. It is equal for every attempt at one scheduled time and for every run
    /// of one control request, and different otherwise.
    ///
    /// ```
    /// # use billing_scheduler::JobContext;
    /// let ctx = JobContext::for_test("report", "2026-01-05T14:00:00Z".parse()?);
    /// assert_eq!(ctx.idempotency_key(), "report@1767621600");
    /// let request = "0195a1f2-7c3d-7e4f-8a5b-6c7d8e9f0a1b".parse()?;
    /// assert_eq!(ctx.with_request_id(Some(request)).idempotency_key(), "report@0195a1f2-7c3d-7e4f-8a5b-6c7d8e9f0a1b");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        let Occurrence { job, scheduled_at } = &self.occurrence;
        match self.request_id {
            Some(request) => format!("{job}@{request}"),
            None => format!("{job}@{}", scheduled_at.timestamp()),
        }
    }

    /// Returns a first attempt at `scheduled_at`, on a manual clock at that time and with the fencing token 1, for tests of a job.
    #[must_use]
    pub fn for_test(job: &str, scheduled_at: DateTime<Utc>) -> Self {
        Self::new(
            Occurrence { job: job.to_owned(), scheduled_at },
            1,
            FencingToken(1),
            Arc::new(ManualClock::at(scheduled_at)),
            StopHandle::new(),
        )
    }

    /// Returns the scheduler's clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Returns the handle that stops this run, for tests and wrappers.
    #[must_use]
    pub fn stop_handle(&self) -> &StopHandle {
        &self.stop
    }

    /// Sets the job's own figures so far, for the run's record. They are recorded however the run ends. Each report replaces the
    /// previous one, and the details of [`Outcome::Done`] replace the last one.
    pub fn report(&self, details: serde_json::Value) {
        *self.reported.lock().unwrap_or_else(PoisonError::into_inner) = details;
    }

    /// Returns the last reported figures.
    #[must_use]
    pub fn reported(&self) -> serde_json::Value {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Masks `secrets` in the error and the details of this run before they are recorded. A program or a server may repeat a secret
    /// in its output.
    pub fn conceal<T: AsRef<str>>(&self, secrets: impl IntoIterator<Item = T>) {
        self.mask.lock().unwrap_or_else(PoisonError::into_inner).add(secrets);
    }

    /// Returns the mask for the secrets of this run, for text that the job truncates, logs or sends.
    #[must_use]
    pub fn mask(&self) -> Mask {
        self.mask.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds the secrets of `mask` to those of the run.
    #[cfg(feature = "runtime")]
    pub(crate) fn with_mask(self, mask: &Mask) -> Self {
        self.mask.lock().unwrap_or_else(PoisonError::into_inner).join(mask);
        self
    }

    /// Returns a copy of the context. `held` is dropped with the last copy of it.
    #[cfg(feature = "runtime")]
    pub(crate) fn holding(&self, held: oneshot::Sender<()>) -> Self {
        Self { held: Some(Arc::new(held)), ..self.clone() }
    }

    /// Returns why the run must stop, if it must.
    #[must_use]
    pub fn stop_requested(&self) -> Option<StopReason> {
        let now_ms = u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX);
        if now_ms < self.stop.runs_until_ms.load(Ordering::SeqCst) {
            return None;
        }
        let requested = *self.stop.reason.borrow();
        Some(requested.unwrap_or(StopReason::LeaseLost))
    }

    /// Returns when the run must stop, with the reason.
    pub async fn stopped(&self) -> StopReason {
        let mut reason = self.stop.reason.subscribe();
        loop {
            if let Some(reason) = self.stop_requested() {
                return reason;
            }
            // A renewal may move the deadline while this waits.
            let deadline = Duration::from_millis(self.stop.runs_until_ms.load(Ordering::SeqCst));
            let left = deadline.saturating_sub(self.clock.monotonic());
            tokio::select! {
                biased;
                requested = reason.wait_for(Option::is_some) => {
                    return requested.ok().and_then(|requested| *requested).unwrap_or(StopReason::Drain);
                }
                () = self.clock.sleep(left) => {}
            }
        }
    }
}
