//! Jobs that block their thread. Each run has a separate thread, so that other jobs are not delayed.

use std::{panic, sync::Arc};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use crate::job::{Job, JobContext, JobError, Outcome};

/// Recurring work that blocks its thread: it computes for long, reads files, or calls a library that waits.
/// [`Registry::register_blocking`](crate::Registry::register_blocking) registers it.
///
/// ```
/// use billing_scheduler::{BlockingJob, JobContext, JobError, Outcome, Registry};
///
/// #[derive(serde::Deserialize)]
/// struct Params { folders: Vec<std::path::PathBuf> }
/// struct Sweep { params: Params }
///
/// impl BlockingJob for Sweep {
///     fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
///         let mut swept = 0;
///         for folder in &self.params.folders {
///             if ctx.stop_requested().is_some() {
///                 return Ok(Outcome::Interrupted { items: swept });
///             }
///             std::fs::read_dir(folder).map_err(JobError::retry)?;
///             swept += 1;
///         }
///         Ok(Outcome::done(swept))
///     }
/// }
///
/// let mut registry = Registry::new();
/// registry.register_blocking("acme.sweep", |params: Params| Sweep { params });
/// ```
pub trait BlockingJob: Send + Sync + 'static {
    /// Runs one occurrence, like [`Job::run`]. A thread cannot be ended from outside, so check [`JobContext::stop_requested`]
    /// between steps. A run that does not return after its timeout is abandoned, and the job does not run again in this
    /// process until the thread returns.
    fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError>;
}

/// Adapts a blocking job to [`Job`].
pub(crate) struct Blocking<J>(Arc<J>);

impl<J> Blocking<J> {
    pub(crate) fn new(job: J) -> Self {
        Self(Arc::new(job))
    }
}

#[async_trait]
impl<J: BlockingJob> Job for Blocking<J> {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let (job, ctx) = (Arc::clone(&self.0), ctx.clone());
        // A run that was requested to stop while it waited for a thread has done nothing yet.
        let run = move || match ctx.stop_requested() {
            Some(_) => Ok(Outcome::Interrupted { items: 0 }),
            None => job.run(&ctx),
        };
        match spawn_blocking(run).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(payload) => panic::resume_unwind(payload),
                // The runtime is shutting down and did not run it.
                Err(_) => Ok(Outcome::Interrupted { items: 0 }),
            },
        }
    }
}
