//! The actions of one lease cycle: decide, act, record, until there is nothing to do.

use chrono::{DateTime, TimeDelta, Utc};
use tracing::{Instrument, Span, error};
use uuid::Uuid;

use super::{
    lease_cycle::{CycleEnd, LeaseCycle, NextWakeup},
    run::Ran,
    shared::{LOOKAHEAD, Shared, TICK_INTERVAL, lock},
    start::{EarlyRun, NotStarted},
    start_gate::StartTicket,
};
use crate::{
    clock::Clock,
    job::{FencingToken, JobContext, StopHandle},
    runtime::{
        decide::{
            JobSpec, ScheduleError, Scope,
            next_action::{
                Action, JobSnapshot, NextRun, SkipOccurrences, already_finished_record, hint_for_release,
                next_action, refusal_record, reset_record, skip_record,
            },
        },
        spans,
        store::{ClaimHint, ControlRequest, JobState, Lease, RunRecord, RunStatus, StoreError},
    },
};

/// The loop of one lease cycle.
pub(super) struct Actions<'a> {
    cycle: &'a LeaseCycle,
    shared: &'a Shared,
    spec: &'a JobSpec,
    /// `None` for a job of this node.
    lease: Option<&'a Lease>,
    stop: &'a StopHandle,
    snapshot: &'a mut JobSnapshot,
    has_run: bool,
}

/// What an action writes.
struct Effect {
    record: RunRecord,
    state: JobState,
    span: Span,
}

impl Effect {
    fn new(record: RunRecord, state: JobState) -> Self {
        Self { record, state, span: Span::none() }
    }
}

impl<'a> Actions<'a> {
    pub(super) fn new(
        cycle: &'a LeaseCycle,
        lease: Option<&'a Lease>,
        stop: &'a StopHandle,
        snapshot: &'a mut JobSnapshot,
    ) -> Self {
        Self { cycle, shared: &cycle.shared, spec: cycle.spec(), lease, stop, snapshot, has_run: false }
    }

    pub(super) async fn run(mut self) -> Result<CycleEnd, StoreError> {
        loop {
            let now = self.shared.clock.now();
            if let Some(next) = self.stops_at(now) {
                return Ok(next.into());
            }
            let (action, instant) = match self.decide(now) {
                Ok(decision) => decision,
                Err(error) => {
                    let name = &self.spec.name;
                    error!(job.name = %name, %error, "cannot schedule job `{name}`: {error}");
                    return Ok((now + TimeDelta::minutes(1)).into());
                }
            };
            let effect = match self.act(action, instant).await {
                Ok(effect) => effect,
                Err(NotStarted::DecideAgain) => continue,
                Err(NotStarted::Until(next)) => return Ok(next.into()),
            };
            if let Some(end) = self.record(effect).await? {
                return Ok(end);
            }
        }
    }

    /// When to wake up next, if the cycle must end before it decides.
    fn stops_at(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if self.shared.is_closed() {
            return Some(now + TICK_INTERVAL);
        }
        // A node's lease is for requests only.
        let is_answered =
            self.spec.scope == Scope::Node && self.lease.is_some() && self.snapshot.requests.is_empty();
        // The next cycle reads what has changed.
        (is_answered || self.cycle.is_requeued()).then_some(now)
    }

    /// Returns the next action, and the instant to wait for if its start is still to come.
    fn decide(&self, now: DateTime<Utc>) -> Result<(Action, Option<DateTime<Utc>>), ScheduleError> {
        let action = self.shared.next_action(self.spec, self.lease, self.snapshot, now)?;
        match action {
            Action::Wait(at) if at <= self.cycle.at && at - now <= LOOKAHEAD => {
                Ok((next_action(self.spec, self.snapshot, at)?, Some(at)))
            }
            action => Ok((action, None)),
        }
    }

    /// Does `action`, at `instant` if that is still to come.
    async fn act(&mut self, action: Action, instant: Option<DateTime<Utc>>) -> Result<Effect, NotStarted> {
        if let Some(at) = instant.filter(|_| !matches!(action, Action::Run(_))) {
            self.wait_for_start(at).await?;
        }
        let now = self.shared.clock.now();
        match action {
            Action::Wait(at) => Err(NotStarted::Until(NextWakeup::instant(at))),
            Action::Skip(skip) => Ok(self.skip(&skip, now)),
            Action::Reset { request_id, reason } => Ok(self.reset(request_id, &reason, now)),
            Action::Refuse { request, reason } => Ok(self.refuse(&request, reason, now)),
            Action::Run(run) => self.start(&run, instant).await,
        }
    }

    async fn wait_for_start(&self, at: DateTime<Utc>) -> Result<StartTicket, NotStarted> {
        let (shared, cycle) = (self.shared, self.cycle);
        shared.progress.wait_for(cycle.at, &cycle.gate);
        let ticket = cycle.gate.ticket();
        shared.wait_for_start(&cycle.job, at, &ticket).await?;
        Ok(ticket)
    }

    fn skip(&self, skip: &SkipOccurrences, now: DateTime<Utc>) -> Effect {
        let state = skip.state(self.snapshot.state.cursor);
        Effect::new(skip_record(self.spec, skip, now), state)
    }

    fn reset(&self, request_id: Option<Uuid>, reason: &str, now: DateTime<Utc>) -> Effect {
        let (record, state) = reset_record(self.spec, request_id, reason, self.snapshot.state.cursor, now);
        Effect::new(record, state)
    }

    fn refuse(&self, request: &ControlRequest, reason: String, now: DateTime<Utc>) -> Effect {
        let record = refusal_record(self.spec, request, reason, now);
        Effect::new(record, self.snapshot.state.clone())
    }

    async fn start(&mut self, run: &NextRun, instant: Option<DateTime<Utc>>) -> Result<Effect, NotStarted> {
        let (shared, cycle) = (self.shared, self.cycle);
        // Everything but the start itself is done before the instant.
        let ctx = self.context(run);
        let mut ticket = None;
        if let Some(at) = instant {
            // Middleware of the application begins at the instant, in this task.
            if !self.has_run && !shared.surroundings.has_middleware() {
                return self.start_early(run, &ctx, at).await;
            }
            ticket = Some(self.wait_for_start(at).await?);
        }
        shared.check_may_run(ctx.stop_requested(), self.has_run)?;
        if self.has_run
            && let Some(running) = lock(&shared.running).get_mut(&cycle.job.index())
        {
            running.followed_at = Some(shared.clock.monotonic());
        }
        self.has_run = true;
        cycle.release_late_slot();
        let span = spans::span(self.spec, &ctx);
        let ran = shared.run(cycle, &ctx, ticket).instrument(span.clone()).await;
        Ok(self.effect_of(run, &ctx, ran, span))
    }

    async fn start_early(
        &mut self,
        run: &NextRun,
        ctx: &JobContext,
        at: DateTime<Utc>,
    ) -> Result<Effect, NotStarted> {
        let cycle = self.cycle;
        let early = EarlyRun::spawn(cycle, ctx, at);
        self.shared.progress.wait_for(cycle.at, &cycle.gate);
        let started = early.started(cycle).await?;
        self.has_run = true;
        cycle.release_late_slot();
        let ran = early.end(cycle, ctx, &started).await;
        Ok(self.effect_of(run, ctx, ran, started.span))
    }

    fn effect_of(&self, run: &NextRun, ctx: &JobContext, ran: Ran, span: Span) -> Effect {
        let (record, state) = self.shared.describe(self.cycle, run, ctx, ran, &self.snapshot.state);
        spans::ended(&span, &record);
        Effect { record, state, span }
    }

    /// Writes an effect. Returns the end of the cycle if nothing is left to do.
    async fn record(&mut self, effect: Effect) -> Result<Option<CycleEnd>, StoreError> {
        let Effect { record, state, span } = effect;
        let (shared, spec) = (self.shared, self.spec);
        let per_node = spec.scope == Scope::Node;
        let record = RunRecord { fencing_token: self.fencing_token(), per_node, ..record };
        shared.surroundings.report_outcome(spec, &record);
        let after = self.snapshot.after(&record, state);
        let last = self.end_after(&record, &after);
        if last.is_some() {
            // The lease is about to be released and must not be renewed.
            lock(&shared.running).remove(&self.cycle.job.index());
        }
        let lease =
            self.lease.map(|lease| Lease { claim_hint: released_hint(spec, &after), ..lease.clone() });
        let written = self.write(lease.as_ref(), last.is_some(), &record, &after.state);
        let skipped = written.instrument(span).await?;
        shared.surroundings.events.emit_record(skipped.as_ref().map_or(&record, |(skipped, _)| skipped));
        shared.remove_answered(record.request_id);
        if let Some(next) = last {
            return Ok(Some(CycleEnd { next, released: true }));
        }
        *self.snapshot = match skipped {
            None => after,
            Some((skipped, state)) => self.snapshot.after(&skipped, state),
        };
        let is_interrupted = record.status == RunStatus::Interrupted;
        Ok(is_interrupted.then(|| (shared.clock.now() + TICK_INTERVAL).into()))
    }

    /// When to wake up next, if nothing is left to do under this lease after `record`.
    fn end_after(&self, record: &RunRecord, after: &JobSnapshot) -> Option<NextWakeup> {
        self.lease?;
        let now = self.shared.clock.now();
        if record.status == RunStatus::Interrupted {
            return Some((now + TICK_INTERVAL).into());
        }
        match next_action(self.spec, after, now) {
            Ok(Action::Wait(next)) if next > self.cycle.at => Some(NextWakeup::instant(next)),
            _ => None,
        }
    }

    /// Writes a record and the state after it, and releases the lease if it `is_last`. A scheduled time that an earlier run
    /// has finished, which is possible after a reset, is recorded as skipped instead: that record and state are returned.
    async fn write(
        &self,
        lease: Option<&Lease>,
        is_last: bool,
        record: &RunRecord,
        state: &JobState,
    ) -> Result<Option<(RunRecord, JobState)>, StoreError> {
        let store = &self.shared.store;
        let write = async |record: &RunRecord, state: &JobState| match lease {
            Some(lease) if is_last => store.finish(lease, record, state).await,
            _ => store.record(lease, record, state).await,
        };
        match write(record, state).await {
            // Only this node runs the job: an earlier answer was lost, and its record was for this occurrence.
            Err(StoreError::AlreadyFinished { .. }) if lease.is_none() => Ok(None),
            Err(StoreError::AlreadyFinished { .. }) => {
                let cursor = self.snapshot.state.cursor;
                let (skipped, state) = already_finished_record(self.spec, record, cursor);
                self.shared.surroundings.report_outcome(self.spec, &skipped);
                write(&skipped, &state).await?;
                Ok(Some((skipped, state)))
            }
            written => written.map(|()| None),
        }
    }

    fn fencing_token(&self) -> FencingToken {
        self.lease.map_or(FencingToken(0), |lease| lease.fencing_token)
    }

    fn context(&self, run: &NextRun) -> JobContext {
        self.shared.context(self.spec, run, self.fencing_token(), self.stop)
    }
}

/// The claim hint to leave when the lease is released. A job that runs on every node leaves none.
pub(super) fn released_hint(spec: &JobSpec, snapshot: &JobSnapshot) -> Option<ClaimHint> {
    (spec.scope == Scope::Cluster).then(|| hint_for_release(spec, snapshot))
}
