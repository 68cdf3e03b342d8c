//! The net below plugins: whatever their code does, the harm stays within its own run.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinHandle, yield_now},
};
use tracing::Instrument;

use crate::job::{Job, JobContext, JobError, Outcome, StopReason};

/// How long a run that is asked to stop may take until it is abandoned.
pub const STOP_GRACE: Duration = Duration::from_secs(30);

/// A job for one run: in a task of its own, with a timeout.
pub(crate) struct Executor {
    job: Arc<dyn Job>,
    timeout: Duration,
    abandoned: Mutex<Option<AbandonedRun>>,
}

/// A run that was given up and may still be there: a thread cannot be ended from outside.
pub(crate) struct AbandonedRun {
    task: Task,
    /// Closes with the last copy of the run's context.
    contexts: oneshot::Receiver<()>,
}

/// Aborted when nobody waits for it any more.
struct Task(JoinHandle<Result<Outcome, JobError>>);

impl Executor {
    pub(crate) fn new(job: Arc<dyn Job>, timeout: Duration) -> Self {
        Self { job, timeout, abandoned: Mutex::default() }
    }

    /// What is left of the run, if it was given up.
    pub(crate) fn into_abandoned(self) -> Option<AbandonedRun> {
        self.abandoned.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Job for Executor {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let (held, contexts) = oneshot::channel();
        let (job, own) = (Arc::clone(&self.job), ctx.holding(held));
        let run = async move { job.run(&own).await };
        let mut task = Task(tokio::spawn(run.in_current_span()));
        // Most runs are over before anybody needs to watch them.
        tokio::select! {
            biased;
            result = &mut task.0 => return result.unwrap_or_else(|error| Err(panicked(error))),
            () = yield_now() => {}
        }
        let timeout = tokio::select! {
            result = &mut task.0 => return result.unwrap_or_else(|error| Err(panicked(error))),
            () = ctx.stop_handle().requested(StopReason::Cancelled) => None,
            () = ctx.clock().sleep(self.timeout) => {
                ctx.stop_handle().stop(StopReason::Timeout);
                Some(JobError::retry(format!("the run exceeded its timeout of {} s", self.timeout.as_secs())))
            }
        };
        let result = tokio::select! {
            result = &mut task.0 => result.unwrap_or_else(|error| Err(panicked(error))),
            () = ctx.clock().sleep(STOP_GRACE) => {
                task.0.abort();
                let abandoned = AbandonedRun { task, contexts };
                *self.abandoned.lock().unwrap_or_else(PoisonError::into_inner) = Some(abandoned);
                Err(JobError::retry("the run did not stop when it was asked to, and was abandoned"))
            }
        };
        // A timeout counts as a failure even if the job stops politely, or it could go on for ever.
        timeout.map_or(result, Err)
    }
}

impl AbandonedRun {
    /// Returns when nothing of the run is left: neither its task nor a thread with its context.
    pub(crate) async fn ended(mut self) {
        // How either ends says nothing any more.
        let _ = (&mut self.task.0).await;
        let _ = self.contexts.await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The result of `run` with no code of a plugin's left in it: a panic is an error, and an error is its text.
pub(crate) async fn catch_unwind(
    run: impl Future<Output = Result<Outcome, JobError>>,
) -> Result<Outcome, JobError> {
    match CatchUnwind(pin!(run)).await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(error)) => Err(as_text_error(error)),
        Err(payload) => Err(JobError::retry(format!("a middleware panicked: {}", message(payload)))),
    }
}

/// Runs a plugin's code; what it panicked with, if it did.
pub(crate) fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(run)).map_err(message)
}

/// A future whose panics are values.
struct CatchUnwind<'a, F>(Pin<&'a mut F>);

impl<F: Future> Future for CatchUnwind<'_, F> {
    type Output = Result<F::Output, Box<dyn Any + Send>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match panic::catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => Poll::Ready(Err(payload)),
        }
    }
}

/// The same error as text: a plugin's own type may panic when it is shown, or when it is dropped.
fn as_text_error(error: JobError) -> JobError {
    let text = catch(|| error.to_string())
        .unwrap_or_else(|panic| format!("the job failed, and telling how panicked: {panic}"));
    let fatal = matches!(error, JobError::Fatal(_));
    let _ = catch(|| drop(error));
    if fatal { JobError::fatal(text) } else { JobError::retry(text) }
}

fn panicked(error: JoinError) -> JobError {
    JobError::retry(match error.try_into_panic() {
        Ok(payload) => format!("the job panicked: {}", message(payload)),
        Err(error) => format!("the job was cancelled: {error}"),
    })
}

fn message(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    let text = text.to_owned();
    // Whatever it is may panic once more when it is dropped; and what that panics with is let go of, not dropped.
    if let Err(again) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
    text
}
