//! One run of a queued job, and what its result means.

use std::sync::Arc;

use tracing::Instrument as _;

use super::{
    decide::{last_attempt_is_lost, settle},
    kind::QueueJob,
};
use crate::{
    clock::Clock,
    job::{JobContext, Occurrence, StopHandle},
    runtime::{
        events::Event,
        executor::Executor,
        spans,
        store::{QueueResult, QueuedJob, RunCause, RunRecord},
        surroundings::Surroundings,
    },
};

/// Runs one job in isolation and within the middleware, and returns its result. A job whose last attempt was lost is not run again.
pub(super) async fn run(
    kind: &QueueJob,
    mut job: QueuedJob,
    stop: StopHandle,
    clock: &Arc<dyn Clock>,
    surroundings: &Surroundings,
) -> QueueResult {
    let spec = kind.spec(&job);
    let lost = last_attempt_is_lost(&kind.retry, &job);
    let occurrence = Occurrence { job: job.kind.clone(), scheduled_at: job.scheduled_at };
    let attempt = job.failed_attempts.saturating_add(lost.is_none().into());
    let ctx = JobContext::new(occurrence, attempt, job.fencing_token, Arc::clone(clock), stop)
        .with_request_id(Some(job.id))
        .with_payload(std::mem::take(&mut job.payload));
    let ctx = surroundings.masked(ctx);
    let span = spans::span(&spec, &ctx);
    let started_at = clock.now();
    let result = if let Some(error) = lost {
        Err(error)
    } else {
        let (occurrence, run_id) = (&ctx.occurrence, ctx.run_id);
        surroundings.events.emit(|| Event::Started { occurrence: occurrence.clone(), attempt, run_id });
        let executor = Executor::new(Arc::clone(&kind.job), kind.timeout);
        surroundings.run(&executor, &ctx).instrument(span.clone()).await
    };
    let settled = settle(&kind.retry, &job, result);
    let mask = ctx.mask();
    let mut details = if settled.details.is_null() { ctx.reported() } else { settled.details };
    mask.apply_to_json(&mut details);
    let run = RunRecord {
        id: ctx.run_id,
        attempt,
        fencing_token: job.fencing_token,
        finished_at: clock.now(),
        items: settled.items,
        request_id: Some(job.id),
        error: settled.error.map(|error| mask.apply(&error).into_owned()),
        details,
        ..RunRecord::new(&job.kind, job.scheduled_at, settled.status, RunCause::Queue, started_at)
    };
    spans::ended(&span, &run);
    let _entered = span.enter();
    surroundings.report_outcome(&spec, &run);
    QueueResult { id: job.id, run, next: settled.next }
}
