//! What the scheduler says about runs: a span around each, and a line when it ends.

use async_trait::async_trait;
use tracing::{Instrument, debug, error, info, info_span, warn};

use crate::{JobContext, JobError, JobSpec, Middleware, Next, Outcome, RunRecord, RunStatus};

/// The outermost [`Middleware`] of every scheduler: the span `run` with `job.name`, `scheduled_at` and `run.id`, and one
/// event for each result.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracing;

#[async_trait]
impl Middleware for Tracing {
    async fn run(&self, ctx: &JobContext, next: Next<'_>) -> Result<Outcome, JobError> {
        let occurrence = &ctx.occurrence;
        let span = info_span!("run", job.name = %occurrence.job, scheduled_at = %occurrence.scheduled_at, run.id = %ctx.run_id);
        next.run(ctx).instrument(span).await
    }

    fn settled(&self, spec: &JobSpec, run: &RunRecord) {
        let name = &spec.name;
        let ms = (run.finished_at - run.started_at).num_milliseconds();
        let error = run.error.as_deref().unwrap_or_default();
        match run.status {
            RunStatus::Done if run.per_node => debug!(job.name = %name, ms, "job `{name}` done"),
            RunStatus::Done => info!(job.name = %name, items = run.items, ms, "job `{name}` done in {ms} ms"),
            RunStatus::Interrupted => {
                let reason = run.reason.as_deref().unwrap_or("the same occurrence runs again");
                info!(job.name = %name, ms, "job `{name}` interrupted: {reason}");
            }
            RunStatus::Retrying => {
                warn!(job.name = %name, attempt = run.attempt, error, "job `{name}` failed, attempt {} of {}: {error}", run.attempt, spec.retry.max_attempts);
            }
            RunStatus::Dead => {
                error!(job.name = %name, attempt = run.attempt, error, "job `{name}` failed and is given up for {}: {error}", run.scheduled_at);
            }
            RunStatus::Skipped | RunStatus::Missed | RunStatus::Paused => {
                let from = run.stretch.map_or(run.scheduled_at, |stretch| stretch.from);
                let (status, until) = (run.status.as_str(), run.scheduled_at);
                let reason = run.reason.as_deref().unwrap_or_default();
                info!(job.name = %name, status, %from, %until, "job `{name}`: {status} from {from} until {until}: {reason}");
            }
        }
    }
}
