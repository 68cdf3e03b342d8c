//! One run: the job between its middleware, and what the result means for the history and the schedule.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tracing::{error, info};

use super::{
    lease_cycle::LeaseCycle,
    shared::{Shared, lock},
    start_gate::StartTicket,
};
use crate::{
    clock::Clock,
    job::{FencingToken, JobContext, JobError, Occurrence, Outcome, StopHandle},
    runtime::{
        decide::{
            AppliedOutcome, JobSpec, ScheduleError, apply_outcome,
            next_action::{Action, JobSnapshot, NextRun, next_action},
        },
        executor::Executor,
        store::{JobState, Lease, RunCause, RunRecord, RunStatus, ScheduleAhead},
    },
};

/// The times and the result of a run that has ended.
pub(super) struct Ran {
    pub(super) started_at: DateTime<Utc>,
    pub(super) finished_at: DateTime<Utc>,
    pub(super) result: Result<Outcome, JobError>,
}

impl LeaseCycle {
    pub(super) fn executor(&self) -> Executor {
        Executor::new(Arc::clone(&self.definition.job), self.definition.spec.timeout)
    }

    /// Keeps the run if it was abandoned: this process does not run the job until it ends.
    pub(super) fn keep_abandoned(&self, executor: Executor) {
        if let Some(abandoned) = executor.into_abandoned() {
            self.job.update_local(|local| local.abandoned = Some(abandoned));
        }
    }
}

impl Shared {
    pub(super) fn context(
        &self,
        spec: &JobSpec,
        run: &NextRun,
        fencing_token: FencingToken,
        stop: &StopHandle,
    ) -> JobContext {
        let occurrence = Occurrence { job: spec.name.clone(), scheduled_at: run.scheduled_at };
        let ctx = JobContext::new(occurrence, run.attempt, fencing_token, self.clock.clone(), stop.clone());
        self.surroundings.masked(ctx.with_request_id(run.request_id))
    }

    /// Runs a job now. Returns when every run of the same instant has started.
    pub(super) async fn run(&self, cycle: &LeaseCycle, ctx: &JobContext, ticket: Option<StartTicket>) -> Ran {
        let started_at = self.clock.now();
        drop(ticket);
        let result = match self.begin(ctx, ctx.stop_requested()) {
            Some(outcome) => Ok(outcome),
            None => self.execute(cycle, ctx).await,
        };
        let finished_at = self.clock.now();
        cycle.gate.all_started().await;
        Ran { started_at, finished_at, result }
    }

    /// Returns the record of a run that has ended, and the state after it.
    pub(super) fn describe(
        &self,
        cycle: &LeaseCycle,
        run: &NextRun,
        ctx: &JobContext,
        ran: Ran,
        state: &JobState,
    ) -> (RunRecord, JobState) {
        let spec = cycle.spec();
        let Ran { started_at, finished_at, result } = ran;
        let is_done = matches!(result, Ok(Outcome::Done { .. }));
        let cancelled =
            lock(&self.running).get(&cycle.job.index()).and_then(|running| running.cancelled.clone());
        let cancelled = cancelled.filter(|_| !is_done);
        let applied = apply_outcome(spec, state, run.scheduled_at, run.attempt, result, finished_at);
        let applied = adjust(applied, run, state, cancelled.is_some());
        // A run that a drain interrupts is continued, so its request stays open.
        let is_open = applied.status == RunStatus::Interrupted && cancelled.is_none();
        let reason = [run.reason.clone(), cancelled].into_iter().flatten().collect::<Vec<_>>().join("; ");
        // The one place where a job's output becomes readable for everyone.
        let mask = ctx.mask();
        let mut details = if applied.details.is_null() { ctx.reported() } else { applied.details };
        mask.apply_to_json(&mut details);
        // Every field is given: a record that is made first would draw an id that nothing uses.
        let record = RunRecord {
            id: ctx.run_id,
            job: spec.name.clone(),
            per_node: false,
            scheduled_at: run.scheduled_at,
            range: run.range,
            status: applied.status,
            cause: run.cause,
            attempt: run.attempt,
            fencing_token: FencingToken(0),
            started_at,
            finished_at,
            items: applied.items,
            request_id: run.request_id.filter(|_| !is_open),
            reason: Some(reason).filter(|reason| !reason.is_empty()),
            error: applied.error.map(|error| mask.apply(&error).into_owned()),
            details,
        };
        (record, applied.state)
    }

    async fn execute(&self, cycle: &LeaseCycle, ctx: &JobContext) -> Result<Outcome, JobError> {
        let executor = cycle.executor();
        let result = self.surroundings.run(&executor, ctx).await;
        cycle.keep_abandoned(executor);
        result
    }

    /// Returns the next action of a lease cycle.
    pub(super) fn next_action(
        &self,
        spec: &JobSpec,
        lease: Option<&Lease>,
        snapshot: &JobSnapshot,
        now: DateTime<Utc>,
    ) -> Result<Action, ScheduleError> {
        let action = next_action(spec, snapshot, now)?;
        let Action::Wait(until) = action else { return Ok(action) };
        // Only this node runs the job, by this clock; or this process has seen that the clock of all processes was set back. Otherwise
        // the clock of any process may have been the wrong one.
        let continues = lease.is_none() || self.clock.has_reached(snapshot.state.cursor);
        if !self.is_ahead(spec, snapshot, until, now, continues) || !continues {
            return Ok(action);
        }
        Ok(Action::Reset { request_id: None, reason: "the clock was set back".to_owned() })
    }

    /// Whether the schedule is finished up to a future time, because a clock was ahead. That is logged once. The job then `continues`
    /// from now on, or waits until an operator resets it.
    fn is_ahead(
        &self,
        spec: &JobSpec,
        snapshot: &JobSnapshot,
        until: DateTime<Utc>,
        now: DateTime<Utc>,
        continues: bool,
    ) -> bool {
        let (name, cursor) = (&spec.name, snapshot.state.cursor);
        let is_held_back =
            snapshot.state.retrying.is_some() || snapshot.pauses.iter().any(|pause| pause.until.is_none());
        let mut reported = lock(&self.ahead);
        if is_held_back || !ScheduleAhead::is_ahead(cursor, now) {
            if reported.remove(name).is_some() {
                info!(job.name = %name, ahead = false, "job `{name}` follows its schedule again");
            }
            return false;
        }
        if reported.insert(name.clone(), cursor) != Some(cursor) {
            let ahead = ScheduleAhead { cursor, until: Some(until) };
            let advice = if continues {
                "it continues from now on".to_owned()
            } else {
                format!("`jobs reset {name} --reason TEXT` lets it run from now on")
            };
            error!(job.name = %name, ahead = true, %until, "job `{name}` {ahead}; {advice}");
        }
        true
    }
}

/// Corrects the outcome of a run that was cancelled or that no schedule started.
fn adjust(outcome: AppliedOutcome, run: &NextRun, before: &JobState, is_cancelled: bool) -> AppliedOutcome {
    let mut outcome = outcome;
    if is_cancelled {
        // A cancelled run is not run again.
        outcome.status = RunStatus::Interrupted;
        outcome.state = JobState::at(before.cursor.max(run.scheduled_at));
    }
    if run.cause != RunCause::Schedule {
        // The operator sees how the run ended, and requests it again if it should be retried.
        if outcome.status == RunStatus::Retrying {
            outcome.status = RunStatus::Dead;
        }
        outcome.state = before.clone();
    }
    outcome
}
