//! The tracing of runs: a span around each run, and a log line for each record.

use tracing::{
    Span, debug, error,
    field::{Empty, display},
    info, info_span, warn,
};

use super::{
    decide::JobSpec,
    middleware::Middleware,
    store::{RunCause, RunRecord, RunStatus},
};
use crate::job::JobContext;

/// The outermost [`Middleware`] of every scheduler: it logs one event per record. The span `run` covers each run until it is
/// recorded. Its fields are `job.name`, `job.kind`, `scheduled_at`, `run.id` and `attempt`, and after the run `outcome`, `items`
/// and `error`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracing;

/// Returns the span of a run that is about to start.
pub(crate) fn span(spec: &JobSpec, ctx: &JobContext) -> Span {
    info_span!(
        "run",
        job.name = %spec.name,
        job.kind = %spec.kind,
        scheduled_at = %ctx.occurrence.scheduled_at,
        run.id = %ctx.run_id,
        attempt = ctx.attempt,
        outcome = Empty,
        items = Empty,
        error = Empty,
    )
}

/// Sets the fields of `span` that are known after the run.
pub(crate) fn ended(span: &Span, run: &RunRecord) {
    span.record("outcome", run.status.as_str()).record("items", run.items);
    if let Some(error) = &run.error {
        span.record("error", display(error));
    }
}

impl Middleware for Tracing {
    fn on_outcome(&self, spec: &JobSpec, run: &RunRecord) {
        let name = &spec.name;
        let ms = (run.finished_at - run.started_at).num_milliseconds();
        let error = run.error.as_deref().unwrap_or_default();
        match run.status {
            RunStatus::Done if run.per_node || run.cause == RunCause::Queue => {
                debug!(job.name = %name, ms, "job `{name}` done");
            }
            RunStatus::Done => info!(job.name = %name, items = run.items, ms, "job `{name}` done in {ms} ms"),
            RunStatus::Interrupted => {
                let reason = run.reason.as_deref().unwrap_or("the same occurrence runs again");
                info!(job.name = %name, ms, "job `{name}` interrupted: {reason}");
            }
            RunStatus::Retrying => {
                warn!(job.name = %name, attempt = run.attempt, error, "job `{name}` failed, attempt {} of {}: {error}", run.attempt, spec.retry.max_attempts);
            }
            RunStatus::Dead => {
                error!(job.name = %name, attempt = run.attempt, error, "job `{name}` failed and is not retried for {}: {error}", run.scheduled_at);
            }
            RunStatus::Skipped | RunStatus::Missed | RunStatus::Paused | RunStatus::Rescheduled => {
                let from = run.range.map_or(run.scheduled_at, |range| range.from);
                let (status, until) = (run.status.as_str(), run.scheduled_at);
                let reason = run.reason.as_deref().unwrap_or_default();
                info!(job.name = %name, status, %from, %until, "job `{name}`: {status} from {from} until {until}: {reason}");
            }
        }
    }
}
