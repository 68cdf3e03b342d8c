//! Runs the code of plugins in isolation: a panic, an endless run or a faulty error affects only its own run.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinHandle, yield_now},
};
use tracing::Instrument;

use crate::job::{Job, JobContext, JobError, Outcome, StopReason};

/// How long a run may take to stop on request before it is abandoned.
pub const STOP_GRACE: Duration = Duration::from_secs(30);

/// Runs a job once, in a separate task and with a timeout.
pub(crate) struct Executor {
    job: Arc<dyn Job>,
    timeout: Duration,
    abandoned: Mutex<Option<RunTask>>,
}

/// The task of a run. If the run was abandoned, it may still exist: a thread cannot be ended from outside.
pub(crate) struct RunTask {
    task: Task,
    /// Closes when the last copy of the run's context is dropped.
    contexts: oneshot::Receiver<()>,
}

/// A task that is aborted when it is dropped.
struct Task(JoinHandle<Result<Outcome, JobError>>);

impl Executor {
    pub(crate) fn new(job: Arc<dyn Job>, timeout: Duration) -> Self {
        Self { job, timeout, abandoned: Mutex::default() }
    }

    /// Spawns the task of a run, which calls `run` with the job and with a copy of the context.
    pub(crate) fn spawn<R>(
        &self,
        ctx: &JobContext,
        run: impl FnOnce(Arc<dyn Job>, JobContext) -> R,
    ) -> RunTask
    where
        R: Future<Output = Result<Outcome, JobError>> + Send + 'static,
    {
        let (held, contexts) = oneshot::channel();
        RunTask { task: Task(tokio::spawn(run(Arc::clone(&self.job), ctx.holding(held)))), contexts }
    }

    /// Waits for the end of a run that has started. Requests it to stop after its timeout, and abandons it if it does not.
    pub(crate) async fn watch(&self, ctx: &JobContext, mut run: RunTask) -> Result<Outcome, JobError> {
        let task = &mut run.task.0;
        let timeout = tokio::select! {
            biased;
            result = &mut *task => return result.unwrap_or_else(|error| Err(panicked(error))),
            () = ctx.stop_handle().requested(StopReason::Cancelled) => None,
            () = ctx.clock().sleep(self.timeout) => {
                ctx.stop_handle().stop(StopReason::Timeout);
                Some(JobError::retry(format!("the run exceeded its timeout of {} s", self.timeout.as_secs())))
            }
        };
        let result = tokio::select! {
            result = &mut *task => result.unwrap_or_else(|error| Err(panicked(error))),
            () = ctx.clock().sleep(STOP_GRACE) => {
                task.abort();
                *self.abandoned.lock().unwrap_or_else(PoisonError::into_inner) = Some(run);
                Err(JobError::retry("the run did not stop on request and was abandoned"))
            }
        };
        // A timeout counts as a failure even if the job stops on request; otherwise it could run without limit.
        timeout.map_or(result, Err)
    }

    /// Returns the run if it was abandoned.
    pub(crate) fn into_abandoned(self) -> Option<RunTask> {
        self.abandoned.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Job for Executor {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let run = |job: Arc<dyn Job>, ctx: JobContext| async move { job.run(&ctx).await }.in_current_span();
        let mut run = self.spawn(ctx, run);
        // Most runs end before a timeout needs to be watched.
        tokio::select! {
            biased;
            result = &mut run.task.0 => return result.unwrap_or_else(|error| Err(panicked(error))),
            () = yield_now() => {}
        }
        self.watch(ctx, run).await
    }
}

impl RunTask {
    /// Returns when the run's task has ended and no thread has its context.
    pub(crate) async fn ended(mut self) {
        // How either ends is irrelevant.
        let _ = (&mut self.task.0).await;
        let _ = self.contexts.await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Returns the result of `run` without any value of a plugin in it: a panic becomes an error, and an error becomes its text.
pub(crate) async fn catch_unwind(
    run: impl Future<Output = Result<Outcome, JobError>>,
) -> Result<Outcome, JobError> {
    match AssertUnwindSafe(run).catch_unwind().await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(error)) => Err(as_text_error(error)),
        Err(payload) => Err(JobError::retry(format!("a middleware panicked: {}", message(payload)))),
    }
}

/// Runs a plugin's code; returns the message of a panic.
pub(crate) fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(run)).map_err(message)
}

/// Replaces an error by its text: a plugin's type may panic when it is formatted or dropped.
fn as_text_error(error: JobError) -> JobError {
    let text = catch(|| error.to_string())
        .unwrap_or_else(|panic| format!("the job failed, and formatting its error panicked: {panic}"));
    let kind = match error {
        JobError::Retry(_) => JobError::Retry,
        JobError::Unavailable(_) => JobError::Unavailable,
        JobError::Fatal(_) => JobError::Fatal,
    };
    let _ = catch(|| drop(error));
    kind(text.into())
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
    // The payload may panic when it is dropped; the payload of that panic is leaked, not dropped.
    if let Err(again) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
    text
}
