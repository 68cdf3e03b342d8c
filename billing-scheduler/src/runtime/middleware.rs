//! Code around every run, to observe or to change it.

use std::sync::Arc;

use async_trait::async_trait;

use super::{decide::JobSpec, store::RunRecord};
use crate::job::{Job, JobContext, JobError, Outcome};

/// Code that wraps each run of each job, scheduled or queued. [`Registry::layer`](crate::Registry::layer) adds it. The scheduler's own log lines
/// come from the middleware [`Tracing`](crate::Tracing).
///
/// Both methods have a default. A panic in either is caught: in `run` it is a failure of that run, in `on_outcome` it is
/// logged.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use billing_scheduler::{JobContext, JobError, JobSpec, Middleware, Next, Outcome, RunRecord, RunStatus};
///
/// /// Runs nothing on a Friday, and counts dead letters.
/// #[derive(Default)]
/// struct Careful {
///     dead_letters: AtomicU64,
/// }
///
/// #[async_trait::async_trait]
/// impl Middleware for Careful {
///     async fn run(&self, ctx: &JobContext, next: Next<'_>) -> Result<Outcome, JobError> {
///         use billing_scheduler::chrono::{Datelike, Weekday};
///         if ctx.clock().now().weekday() == Weekday::Fri {
///             return Err(JobError::retry("not on a Friday"));
///         }
///         next.run(ctx).await
///     }
///
///     fn on_outcome(&self, _: &JobSpec, run: &RunRecord) {
///         if run.status == RunStatus::Dead {
///             self.dead_letters.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
///
/// let mut registry = billing_scheduler::Registry::new();
/// registry.layer(Careful::default());
/// ```
#[async_trait]
pub trait Middleware: Send + Sync + 'static {
    /// Runs one attempt and returns its result. `next` is the remaining middleware and the job; an implementation may skip it, and
    /// may change its result.
    ///
    /// The job behind `next` runs in a separate task with its timeout: a panic or a run that never ends is returned as a
    /// [`JobError`]. The middleware itself has no timeout, so it must check [`JobContext::stop_requested`] while it waits.
    async fn run(&self, ctx: &JobContext, next: Next<'_>) -> Result<Outcome, JobError> {
        next.run(ctx).await
    }

    /// Receives each record just before it is written: of an attempt, or of scheduled times without a run. The scheduler waits
    /// for it, so it must not block. The specification of a queued job has its kind as name, and a schedule that is due once.
    fn on_outcome(&self, spec: &JobSpec, run: &RunRecord) {
        let _ = (spec, run);
    }
}

/// The remaining middleware, and the job.
pub struct Next<'a> {
    rest: &'a [Arc<dyn Middleware>],
    job: &'a dyn Job,
}

impl<'a> Next<'a> {
    /// Calls `job` directly, for tests of a middleware.
    #[must_use]
    pub fn to(job: &'a dyn Job) -> Self {
        Self { rest: &[], job }
    }

    pub(crate) fn through(rest: &'a [Arc<dyn Middleware>], job: &'a dyn Job) -> Self {
        Self { rest, job }
    }

    /// Runs the remaining middleware, then the job.
    pub async fn run(self, ctx: &JobContext) -> Result<Outcome, JobError> {
        match self.rest.split_first() {
            Some((first, rest)) => first.run(ctx, Next { rest, job: self.job }).await,
            None => self.job.run(ctx).await,
        }
    }
}
