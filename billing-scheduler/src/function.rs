//! Jobs from async functions and closures.

use async_trait::async_trait;

use crate::job::{BoxError, Job, JobContext, JobError, Outcome};

/// What an async function that is a job may return: `()`, an [`Outcome`], or a [`Result`] of either with any error. An error is
/// retried, unless it is a [`JobError`] that decides otherwise.
///
/// A closure whose last expression is `Ok(())` must name its error type: `Ok::<_, BoxError>(())`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a result of a job",
    note = "return `()`, `Outcome`, or a `Result` of either whose error implements `Into<BoxError>`"
)]
pub trait IntoOutcome {
    /// Returns the outcome of the run, or its failure.
    fn into_outcome(self) -> Result<Outcome, JobError>;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Result<Outcome, JobError> {
        Ok(self.into())
    }
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Result<Outcome, JobError> {
        Ok(self)
    }
}

impl<T: Into<Outcome>, E: Into<BoxError>> IntoOutcome for Result<T, E> {
    fn into_outcome(self) -> Result<Outcome, JobError> {
        // `JobError` is an error as well, and keeps its classification.
        self.map(Into::into).map_err(|error| match error.into().downcast::<JobError>() {
            Ok(error) => *error,
            Err(error) => JobError::Retry(error),
        })
    }
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::done(0)
    }
}

/// Adapts an async function to [`Job`].
pub(crate) struct FnJob<F>(pub(crate) F);

#[async_trait]
impl<F, R> Job for FnJob<F>
where
    F: Fn(JobContext) -> R + Send + Sync + 'static,
    R: Future<Output: IntoOutcome> + Send + 'static,
{
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        (self.0)(ctx.clone()).await.into_outcome()
    }
}
