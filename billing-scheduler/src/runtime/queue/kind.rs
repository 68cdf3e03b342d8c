//! The code of one kind of queued jobs, with its limits.

use std::{sync::Arc, time::Duration};

use chrono::SubsecRound as _;
use serde::de::DeserializeOwned;

use crate::{
    function::{FnJob, IntoOutcome},
    job::{Job, JobContext},
    runtime::{
        decide::{JobSpec, Retry, Schedule},
        store::QueuedJob,
    },
};

/// The code of one kind of queued jobs, with its limits: see [`SchedulerBuilder::queue_job`](crate::SchedulerBuilder::queue_job).
#[must_use]
pub struct QueueJob {
    pub(super) kind: String,
    pub(super) job: Arc<dyn Job>,
    pub(super) concurrency: u32,
    pub(super) timeout: Duration,
    pub(super) retry: Retry,
}

impl QueueJob {
    /// Returns a kind that calls an async function or closure with the decoded payload. A payload that cannot be decoded is a
    /// failure without a retry.
    pub fn new<P, F, R>(kind: impl Into<String>, run: F) -> Self
    where
        P: DeserializeOwned + Send + 'static,
        F: Fn(JobContext, P) -> R + Send + Sync + 'static,
        R: Future<Output: IntoOutcome> + Send + 'static,
    {
        let run = Arc::new(run);
        Self::of(
            kind,
            FnJob(move |ctx: JobContext| {
                let run = Arc::clone(&run);
                async move {
                    let payload = ctx.payload()?;
                    run(ctx, payload).await.into_outcome()
                }
            }),
        )
    }

    /// Returns a kind of a type that implements [`Job`], which reads [`JobContext::payload`].
    pub fn of(kind: impl Into<String>, job: impl Job) -> Self {
        Self {
            kind: kind.into(),
            job: Arc::new(job),
            concurrency: 10,
            timeout: JobSpec::TIMEOUT,
            retry: Retry::default(),
        }
    }

    /// Sets how many jobs of the kind this process runs at once; 10 by default.
    pub fn concurrency(self, concurrency: u32) -> Self {
        Self { concurrency, ..self }
    }

    /// Sets the maximum duration of one run; ten minutes by default.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sets the policy for failed runs. An attempt whose process ended is a failed one: with one attempt, a job runs at most once.
    pub fn retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }

    /// The kind's name.
    pub(crate) fn name(&self) -> &str {
        &self.kind
    }

    /// Returns the specification of `job` for middleware: it is due once.
    pub(super) fn spec(&self, job: &QueuedJob) -> JobSpec {
        let once = Schedule::at(job.scheduled_at.trunc_subsecs(0)).expect("it is a whole second");
        JobSpec { timeout: self.timeout, retry: self.retry, ..JobSpec::new(&self.kind, &self.kind, once) }
    }
}

impl std::fmt::Debug for QueueJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueJob").field("kind", &self.kind).finish_non_exhaustive()
    }
}
