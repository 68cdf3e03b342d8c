//! What surrounds every run, of a scheduled and of a queued job: middleware, the mask for secrets, and events.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::error;

use super::{
    decide::JobSpec,
    events::EventSender,
    executor::{catch, catch_unwind},
    middleware::{Middleware, Next},
    spans::Tracing,
    store::RunRecord,
};
use crate::{
    job::{Job, JobContext, JobError, Outcome},
    mask::Mask,
    registry::Registry,
};

pub(crate) struct Surroundings {
    /// The outermost comes first.
    middleware: Vec<Arc<dyn Middleware>>,
    /// Hides secrets in what jobs return.
    mask: Mutex<Mask>,
    pub(crate) events: EventSender,
}

impl Surroundings {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            middleware: std::iter::once(Arc::new(Tracing) as Arc<dyn Middleware>)
                .chain(registry.middleware().iter().cloned())
                .collect(),
            mask: Mutex::new(registry.mask().clone()),
            events: EventSender::default(),
        }
    }

    /// Returns the context of a run that hides secrets.
    pub(crate) fn masked(&self, ctx: JobContext) -> JobContext {
        ctx.with_mask(&self.mask.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_mask(&self, mask: &Mask) {
        self.mask.lock().unwrap_or_else(PoisonError::into_inner).clone_from(mask);
    }

    /// Whether a run is within middleware of the application.
    pub(crate) fn has_middleware(&self) -> bool {
        // `Tracing` does nothing before and after a run.
        self.middleware.len() > 1
    }

    /// Runs `job` within the middleware. A panic becomes an error.
    pub(crate) async fn run(&self, job: &dyn Job, ctx: &JobContext) -> Result<Outcome, JobError> {
        catch_unwind(Next::through(&self.middleware, job).run(ctx)).await
    }

    /// Passes a record to each middleware before it is written.
    pub(crate) fn report_outcome(&self, spec: &JobSpec, run: &RunRecord) {
        for middleware in &self.middleware {
            if let Err(panic) = catch(|| middleware.on_outcome(spec, run)) {
                let name = &spec.name;
                error!(job.name = %name, "a middleware panicked at the outcome of job `{name}`: {panic}");
            }
        }
    }
}
