//! Jobs that block: a thread of their own, so that they keep nobody else waiting.

use std::{panic, sync::Arc};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use crate::job::{Job, JobContext, JobError, Outcome};

/// A piece of recurring work that blocks its thread: it computes for long, reads files, or calls a library that waits.
/// [`Registry::register_blocking`](crate::Registry::register_blocking) makes it known.
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
    /// One occurrence, as [`Job::run`]. A thread cannot be ended from outside: look at [`JobContext::stop_requested`]
    /// between steps. One that does not is left alone after its timeout, and the job does not run again in this process
    /// until it returns.
    fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError>;
}

/// The job as the scheduler sees it.
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
        // A run that was asked to stop while it waited for a thread has nothing to stop.
        let run = move || match ctx.stop_requested() {
            Some(_) => Ok(Outcome::Interrupted { items: 0 }),
            None => job.run(&ctx),
        };
        match spawn_blocking(run).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(payload) => panic::resume_unwind(payload),
                // The runtime is on its way down, and ran it not at all.
                Err(_) => Ok(Outcome::Interrupted { items: 0 }),
            },
        }
    }
}
