//! What surrounds every run, as a layer surrounds a service: to observe it, or to change how it goes.

use std::sync::Arc;

use async_trait::async_trait;

use super::{decide::JobSpec, store::RunRecord};
use crate::job::{Job, JobContext, JobError, Outcome};

/// Something to do around each run of each job. [`Registry::layer`](crate::Registry::layer) adds one; what the scheduler
/// itself logs comes from [`Tracing`](crate::Tracing).
///
/// Both methods have a default that does nothing, so that an observer writes only what it needs. A panic in either is
/// caught: in `run` it is a failure of that run, in `on_outcome` a line in the log.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use billing_scheduler::{JobContext, JobError, JobSpec, Middleware, Next, Outcome, RunRecord, RunStatus};
///
/// /// Lets nothing run on a Friday, and counts what was given up.
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
    /// One attempt: what this returns is its result. `next` is the rest of the way, down to the job; it may be left out,
    /// and its result may be changed.
    ///
    /// The job behind `next` has a task of its own, its timeout and a net below it: a panic or a run that never ends comes
    /// back as a [`JobError`]. The middleware itself has no timeout: it must look at [`JobContext::stop_requested`] when
    /// it waits.
    async fn run(&self, ctx: &JobContext, next: Next<'_>) -> Result<Outcome, JobError> {
        next.run(ctx).await
    }

    /// What became of a scheduled time, or of one attempt at it, just before it is recorded; also of one that was passed
    /// over without a run. Called by the scheduler while it waits, so it must not block.
    fn on_outcome(&self, spec: &JobSpec, run: &RunRecord) {
        let _ = (spec, run);
    }
}

/// The rest of the way to the job.
pub struct Next<'a> {
    rest: &'a [Arc<dyn Middleware>],
    job: &'a dyn Job,
}

impl<'a> Next<'a> {
    /// Straight to `job`: for tests of a middleware.
    #[must_use]
    pub fn to(job: &'a dyn Job) -> Self {
        Self { rest: &[], job }
    }

    pub(crate) fn through(rest: &'a [Arc<dyn Middleware>], job: &'a dyn Job) -> Self {
        Self { rest, job }
    }

    /// Goes it.
    pub async fn run(self, ctx: &JobContext) -> Result<Outcome, JobError> {
        match self.rest.split_first() {
            Some((first, rest)) => first.run(ctx, Next { rest, job: self.job }).await,
            None => self.job.run(ctx).await,
        }
    }
}
