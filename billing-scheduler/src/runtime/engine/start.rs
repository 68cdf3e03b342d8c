//! The start of a run: at its instant, if that is still to come, and only if nothing has changed meanwhile. Of many jobs that are due at
//! one instant, the last one starts as late as all starts together take, so everything else is done before the instant or after all have
//! started.

use std::sync::{Arc, OnceLock};

use chrono::{DateTime, Utc};
use tracing::{Instrument as _, Span};

use super::{
    lease_cycle::{LeaseCycle, NextWakeup},
    run::Ran,
    scheduled_job::{Definition, ScheduledJob},
    shared::{Shared, TICK_INTERVAL, lock},
    start_gate::StartTicket,
};
use crate::{
    clock::Clock,
    job::{Job, JobContext, JobError, Outcome, StopReason},
    runtime::{
        events::Event,
        executor::{Executor, RunTask},
        spans,
    },
};

/// Why an action does not follow.
#[derive(Clone, Copy, Debug)]
pub(super) enum NotStarted {
    /// The cycle ends; the job wakes up then.
    Until(NextWakeup),
    /// More may have become due since, or the job was requeued.
    DecideAgain,
}

impl Shared {
    /// Waits for the instant `at` of a job whose ticket this is, and returns the time.
    pub(super) async fn wait_for_start(
        &self,
        job: &ScheduledJob,
        at: DateTime<Utc>,
        ticket: &StartTicket,
    ) -> Result<DateTime<Utc>, NotStarted> {
        ticket.opened().await;
        let now = self.clock.now();
        if now < at {
            // The clock was set back.
            Err(NotStarted::Until(at.into()))
        } else if now - at >= TICK_INTERVAL || lock(&self.due_queue).is_requeued(job.index()) {
            Err(NotStarted::DecideAgain)
        } else {
            Ok(now)
        }
    }

    /// Fails if the run is `stopped` because the claim was answered too late, or an earlier run of this cycle was stopped, or if the
    /// scheduler is draining. A run that was cancelled before it started is recorded as such.
    pub(super) fn check_may_run(&self, stopped: Option<StopReason>, has_run: bool) -> Result<(), NotStarted> {
        let is_stopped = stopped.is_some_and(|reason| has_run || reason != StopReason::Cancelled);
        if is_stopped || self.is_closed() {
            return Err(NotStarted::Until((self.clock.now() + TICK_INTERVAL).into()));
        }
        Ok(())
    }

    /// Sends the event of a start. Returns the result of the run if it was `stopped` before.
    pub(super) fn begin(&self, ctx: &JobContext, stopped: Option<StopReason>) -> Option<Outcome> {
        if stopped.is_some() {
            return Some(Outcome::Interrupted { items: 0 });
        }
        let (occurrence, attempt, run_id) = (&ctx.occurrence, ctx.attempt, ctx.run_id);
        self.surroundings.events.emit(|| Event::Started { occurrence: occurrence.clone(), attempt, run_id });
        None
    }
}

/// A run whose task exists before its instant and waits for it: the start takes one wake-up of one task.
pub(super) struct EarlyRun {
    executor: Executor,
    task: RunTask,
    notes: Arc<Notes>,
}

/// What the task of an early run notes for the lease cycle. It may panic, or not return.
#[derive(Default)]
struct Notes {
    started: OnceLock<Result<Started, NotStarted>>,
    finished_at: OnceLock<DateTime<Utc>>,
}

/// The start of an early run.
#[derive(Clone)]
pub(super) struct Started {
    at: DateTime<Utc>,
    pub(super) span: Span,
}

/// The task of an early run.
struct EarlyTask {
    shared: Arc<Shared>,
    job: Arc<ScheduledJob>,
    definition: Arc<Definition>,
    at: DateTime<Utc>,
    ticket: StartTicket,
    notes: Arc<Notes>,
}

impl EarlyRun {
    /// Spawns the task of a run that starts at `at`.
    pub(super) fn spawn(cycle: &LeaseCycle, ctx: &JobContext, at: DateTime<Utc>) -> Self {
        let notes = Arc::<Notes>::default();
        let early = EarlyTask {
            shared: Arc::clone(&cycle.shared),
            job: Arc::clone(&cycle.job),
            definition: Arc::clone(&cycle.definition),
            at,
            ticket: cycle.gate.ticket(),
            notes: Arc::clone(&notes),
        };
        let executor = cycle.executor();
        let task = executor.spawn(ctx, |code, ctx| early.run(code, ctx));
        Self { executor, task, notes }
    }

    /// Waits until the run has started, and every other one of the instant.
    pub(super) async fn started(&self, cycle: &LeaseCycle) -> Result<Started, NotStarted> {
        cycle.gate.all_started().await;
        // It is noted before the ticket is dropped, unless the runtime has dropped the task.
        let dropped = || Err(NotStarted::Until((cycle.shared.clock.now() + TICK_INTERVAL).into()));
        self.notes.started.get().cloned().unwrap_or_else(dropped)
    }

    /// Waits for the end of the run.
    pub(super) async fn end(self, cycle: &LeaseCycle, ctx: &JobContext, started: &Started) -> Ran {
        let result = self.executor.watch(ctx, self.task).await;
        let finished_at = self.notes.finished_at.get().copied();
        let finished_at = finished_at.unwrap_or_else(|| cycle.shared.clock.now());
        cycle.keep_abandoned(self.executor);
        Ran { started_at: started.at, finished_at, result }
    }
}

impl EarlyTask {
    async fn run(self, code: Arc<dyn Job>, ctx: JobContext) -> Result<Outcome, JobError> {
        let Self { shared, job, definition, at, ticket, notes } = self;
        let started_at = shared.wait_for_start(&job, at, &ticket).await;
        let stopped = ctx.stop_requested();
        let may_run = started_at.and_then(|at| shared.check_may_run(stopped, false).map(|()| at));
        let at = match may_run {
            Ok(at) => at,
            Err(reason) => {
                let _ = notes.started.set(Err(reason));
                return Ok(Outcome::Interrupted { items: 0 });
            }
        };
        let span = spans::span(&definition.spec, &ctx);
        let _ = notes.started.set(Ok(Started { at, span: span.clone() }));
        drop(ticket);
        let run = async {
            match shared.begin(&ctx, stopped) {
                Some(outcome) => Ok(outcome),
                None => code.run(&ctx).await,
            }
        };
        let result = run.instrument(span).await;
        let _ = notes.finished_at.set(shared.clock.now());
        result
    }
}
