//! What a plugin implements, and what it is given for one run.

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
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::{
    clock::{Clock, ManualClock},
    mask::Mask,
};

/// Any error of a job's own.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A piece of recurring work.
#[async_trait]
pub trait Job: Send + Sync + 'static {
    /// One occurrence. May be called again for the same one (after a crash, an interruption, a retry): be idempotent and
    /// derive everything from `ctx.occurrence`. Look at [`JobContext::stop_requested`] between steps, and return
    /// [`Outcome::Interrupted`] when it says so.
    ///
    /// # Errors
    /// [`JobError::Retry`] when another attempt may help, [`JobError::Fatal`] when it cannot.
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError>;
}

/// What identifies a run, however late it starts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Occurrence {
    /// The job's name in the configuration.
    pub job: String,
    /// When it was due, in whole seconds.
    pub scheduled_at: DateTime<Utc>,
}

impl fmt::Display for Occurrence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` of {}", self.job, self.scheduled_at.format("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// The number of a claim of a job's lease: greater than every earlier one. Work is committed only under the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(pub i64);

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a run ended that did not fail.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The occurrence is finished with.
    Done {
        /// How many things were worked on, for the history.
        items: u64,
        /// The job's own figures, kept with the run's row.
        details: serde_json::Value,
    },
    /// Asked to stop before the end: the same occurrence runs again, and no attempt is counted.
    Interrupted {
        /// How many things were worked on before the stop.
        items: u64,
    },
}

impl Outcome {
    /// Finished, with nothing to tell but the number of things worked on.
    #[must_use]
    pub fn done(items: u64) -> Self {
        Self::Done { items, details: serde_json::Value::Null }
    }
}

/// How a run failed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Another attempt may succeed.
    #[error("{0}")]
    Retry(#[source] BoxError),
    /// No attempt will: the occurrence becomes a dead letter.
    #[error("{0}")]
    Fatal(#[source] BoxError),
}

impl JobError {
    /// A failure that may pass.
    pub fn retry(error: impl Into<BoxError>) -> Self {
        Self::Retry(error.into())
    }

    /// A failure that will not pass by itself.
    pub fn fatal(error: impl Into<BoxError>) -> Self {
        Self::Fatal(error.into())
    }
}

/// Why a run is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The process is about to end.
    Drain,
    /// The job's lease is lost, or too old to be trusted: somebody else may be about to start.
    LeaseLost,
    /// The run took longer than it may.
    Timeout,
    /// Somebody asked for it.
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

/// The other end of a run's stop signal and of its lease's deadline.
#[derive(Clone, Debug)]
pub struct StopHandle {
    reason: watch::Sender<Option<StopReason>>,
    lease_until_ms: Arc<AtomicU64>,
}

impl StopHandle {
    /// Nothing asks to stop, and the lease has no end.
    #[must_use]
    pub fn new() -> Self {
        Self { reason: watch::Sender::new(None), lease_until_ms: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// Asks the run to stop. The first reason stays.
    pub fn stop(&self, reason: StopReason) {
        self.reason.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(reason);
            }
            first
        });
    }

    /// Returns when the run is asked to stop for this reason.
    #[cfg(feature = "runtime")]
    pub(crate) async fn requested(&self, expected: StopReason) {
        // The sender lives as long as this handle.
        let _ = self.reason.subscribe().wait_for(|reason| *reason == Some(expected)).await;
    }

    /// From `deadline` on, told by [`Clock::monotonic`], the lease is not to be trusted any more.
    pub fn trust_lease_until(&self, deadline: Duration) {
        let millis = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        self.lease_until_ms.store(millis, Ordering::SeqCst);
    }
}

impl Default for StopHandle {
    fn default() -> Self {
        Self::new()
    }
}

/// What a job knows about the run it is in.
#[derive(Clone, Debug)]
pub struct JobContext {
    /// Which scheduled time of which job this is.
    pub occurrence: Occurrence,
    /// The id under which this run will be recorded.
    pub run_id: Uuid,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// The number of the claim under which this run may write.
    pub fencing_token: FencingToken,
    /// The control request that this run answers; `None` if its scheduled time started it.
    pub request: Option<Uuid>,
    clock: Arc<dyn Clock>,
    stop: StopHandle,
    reported: Arc<Mutex<serde_json::Value>>,
    mask: Arc<Mutex<Mask>>,
    #[expect(dead_code, reason = "held for its drop")]
    held: Option<Arc<oneshot::Sender<()>>>,
}

impl JobContext {
    /// A run as the scheduler makes one.
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
            request: None,
            clock,
            stop,
            reported: Arc::default(),
            mask: Arc::default(),
            held: None,
        }
    }

    /// The same run as the answer to a control request, if there is one.
    #[must_use]
    pub fn with_request(self, request: Option<Uuid>) -> Self {
        Self { request, ..self }
    }

    /// The identity of what this run does, for receivers that discard repetitions: equal for every attempt at one scheduled time
    /// and for every run of one control request, and different for any two of these.
    ///
    /// ```
    /// # use billing_scheduler::JobContext;
    /// let ctx = JobContext::for_test("report", "2026-01-05T14:00:00Z".parse()?);
    /// assert_eq!(ctx.idempotency_key(), "report@1767621600");
    /// let request = "0195a1f2-7c3d-7e4f-8a5b-6c7d8e9f0a1b".parse()?;
    /// assert_eq!(ctx.with_request(Some(request)).idempotency_key(), "report@0195a1f2-7c3d-7e4f-8a5b-6c7d8e9f0a1b");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        let Occurrence { job, scheduled_at } = &self.occurrence;
        match self.request {
            Some(request) => format!("{job}@{request}"),
            None => format!("{job}@{}", scheduled_at.timestamp()),
        }
    }

    /// A first attempt at `scheduled_at`, on a clock that shows the same and under the fence 1: for tests of a job.
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

    /// The clock that the scheduler goes by.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The signal that this run listens to, for code that stops it (tests, wrappers).
    #[must_use]
    pub fn stop_handle(&self) -> &StopHandle {
        &self.stop
    }

    /// The job's own figures so far, for the run's row. They are kept however the run ends, so that a run that fails, or is
    /// given up, still tells how far it came; each report replaces the one before, and the details of [`Outcome::Done`] all.
    pub fn report(&self, details: serde_json::Value) {
        *self.reported.lock().unwrap_or_else(PoisonError::into_inner) = details;
    }

    /// What was reported last.
    #[must_use]
    pub fn reported(&self) -> serde_json::Value {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hides `secrets` in the error and the details of this run before they are recorded: what a job hands to a program or a server
    /// may come back in its output.
    pub fn conceal<T: AsRef<str>>(&self, secrets: impl IntoIterator<Item = T>) {
        self.mask.lock().unwrap_or_else(PoisonError::into_inner).add(secrets);
    }

    /// What hides the secrets of this run, for text that is cut, logged or sent by the job.
    #[must_use]
    pub fn mask(&self) -> Mask {
        self.mask.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same run, in which `mask` hides its secrets as well.
    #[cfg(feature = "runtime")]
    pub(crate) fn with_mask(self, mask: &Mask) -> Self {
        self.mask.lock().unwrap_or_else(PoisonError::into_inner).join(mask);
        self
    }

    /// The same run; `held` is dropped with the last copy of this context.
    #[cfg(feature = "runtime")]
    pub(crate) fn holding(&self, held: oneshot::Sender<()>) -> Self {
        Self { held: Some(Arc::new(held)), ..self.clone() }
    }

    /// Whether to start nothing more, and why.
    #[must_use]
    pub fn stop_requested(&self) -> Option<StopReason> {
        let asked = *self.stop.reason.borrow();
        asked.or_else(|| {
            let now_ms = u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX);
            (now_ms >= self.stop.lease_until_ms.load(Ordering::SeqCst)).then_some(StopReason::LeaseLost)
        })
    }

    /// Returns when the run is asked to stop, or its lease is not to be trusted any more.
    pub async fn stopped(&self) -> StopReason {
        let mut reason = self.stop.reason.subscribe();
        loop {
            if let Some(reason) = self.stop_requested() {
                return reason;
            }
            // A renewal may move the deadline meanwhile; then there is another one to wait for.
            let deadline = Duration::from_millis(self.stop.lease_until_ms.load(Ordering::SeqCst));
            let left = deadline.saturating_sub(self.clock.monotonic());
            tokio::select! {
                biased;
                asked = reason.wait_for(Option::is_some) => {
                    return asked.ok().and_then(|asked| *asked).unwrap_or(StopReason::Drain);
                }
                () = self.clock.sleep(left) => {}
            }
        }
    }
}
