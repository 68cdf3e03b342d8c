//! A turn of one job: acquire, step, run, record, step again, release. The last record and the release are one request.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tracing::{Instrument, Span, debug, error, info, warn};
use uuid::Uuid;

use super::{
    due_queue::Wakeup,
    executor::{Executor, catch, catch_unwind},
    scheduled_job::{Definition, ScheduledJob},
    shared::{Inner, LOOKAHEAD, TICK_INTERVAL, lock},
    start_gate::{StartGate, StartTicket},
};
use crate::{
    job::{FencingToken, JobContext, JobError, Occurrence, Outcome, StopHandle, StopReason},
    runtime::{
        decide::{
            JobSpec, ScheduleError, Scope, apply_outcome,
            next_action::{
                Action, JobSnapshot, NextRun, already_finished_record, first_cursor, hint_for_release,
                hint_of_removed_job, next_action, occurrence_range, refusal_record, reset_record,
                skip_record,
            },
        },
        middleware::Next,
        spans,
        store::{
            Claim, ClaimHint, JobState, Lease, RunCause, RunRecord, RunStatus, ScheduleAhead, StoreError,
        },
    },
};

/// The longest wait before the store is asked again after it failed.
const MAX_STORE_BACKOFF: TimeDelta = TimeDelta::seconds(30);

/// One turn of one job.
pub(super) struct LeaseCycle {
    inner: Arc<Inner>,
    job: Arc<ScheduledJob>,
    definition: Arc<Definition>,
    /// When the job is expected to be due; the begin of the turn, if that has passed.
    at: DateTime<Utc>,
    /// Those that are due then.
    gate: Arc<StartGate>,
    /// It takes the place of another one that is late, until it has decided.
    holds_late_slot: AtomicBool,
    /// When to look at the job next.
    next: NextLook,
}

/// When to look at a job again.
#[derive(Clone, Copy, Debug)]
struct NextLook {
    at: DateTime<Utc>,
    /// The job is due then. Anything else is a try, which must not come earlier.
    is_instant: bool,
}

impl NextLook {
    fn instant(at: DateTime<Utc>) -> Self {
        Self { at, is_instant: true }
    }

    fn earlier(self, other: Self) -> Self {
        if other.at < self.at { other } else { self }
    }
}

impl From<DateTime<Utc>> for NextLook {
    fn from(at: DateTime<Utc>) -> Self {
        Self { at, is_instant: false }
    }
}

pub(super) struct Running {
    pub(super) job: Arc<ScheduledJob>,
    pub(super) stop: StopHandle,
    pub(super) lease: Option<Lease>,
    /// Who cancelled it and why, in a sentence.
    pub(super) cancelled: Option<String>,
    /// When a run followed another one under this claim, by the monotonic clock.
    pub(super) followed_at: Option<Duration>,
}

/// How the steps of a turn ended.
struct CycleEnd {
    next: NextLook,
    /// The lease went back with the last record.
    released: bool,
}

impl<T: Into<NextLook>> From<T> for CycleEnd {
    fn from(next: T) -> Self {
        Self { next: next.into(), released: false }
    }
}

impl Inner {
    pub(super) async fn run_cycle(
        self: Arc<Self>,
        job: Arc<ScheduledJob>,
        look: Wakeup,
        gate: Arc<StartGate>,
    ) {
        let now = self.clock.now();
        // However this ends, the job is looked at again.
        let mut cycle = LeaseCycle {
            definition: job.definition(),
            job,
            at: if look.is_late { now } else { look.at },
            gate,
            holds_late_slot: AtomicBool::new(look.is_late),
            next: (now + TICK_INTERVAL).into(),
            inner: self,
        };
        let inner = &cycle.inner;
        if !inner.is_closed() {
            cycle.next = inner.cycle(&cycle).await;
            cycle.inner.wait_for_abandoned(&cycle.job).await;
        }
    }

    /// Waits for the end of a run that was given up. Its lease is free for other processes meanwhile, but in this one the job
    /// stays as it is: one that never gives its threads back would take them all, one run after the other.
    async fn wait_for_abandoned(&self, job: &ScheduledJob) {
        let abandoned = lock(&job.local).as_mut().and_then(|local| local.abandoned.take());
        let Some(abandoned) = abandoned else { return };
        let name = &job.name;
        let mut ended = pin!(abandoned.ended());
        tokio::select! {
            biased;
            () = &mut ended => {}
            () = self.clock.sleep(Duration::from_secs(1)) => {
                error!(job.name = %name, "job `{name}` was asked to stop and does not: it will not run here until it does");
                ended.await;
                warn!(job.name = %name, "job `{name}` has stopped at last, and runs again");
            }
        }
    }

    /// One turn of one job; returns when to look at it next.
    async fn cycle(self: &Arc<Self>, cycle: &LeaseCycle) -> NextLook {
        let spec = &cycle.definition.spec;
        if cycle.job.is_removed() {
            return self.retire(cycle).await;
        }
        match spec.scope {
            Scope::Cluster => self.with_lease(cycle).await,
            Scope::Node => {
                // What a person asks for runs once, on the node that claims it.
                let mut asked = None;
                if self.has_open_request(&spec.name) {
                    asked = Some(self.with_lease(cycle).await);
                }
                let next = self.run_node_cycle(cycle).await;
                // It may still be to do, if somebody else had the claim.
                asked.filter(|_| self.has_open_request(&spec.name)).map_or(next, |asked| next.earlier(asked))
            }
        }
    }

    async fn with_lease(&self, cycle: &LeaseCycle) -> NextLook {
        let spec = &cycle.definition.spec;
        let began = self.clock.now();
        let stop = StopHandle::new();
        let open_requests = self.open_requests(&spec.name);
        let sent = self.clock.monotonic();
        let mut lease = match self.store.acquire(&spec.name, first_cursor(spec, began)).await {
            Ok(Claim::Held(lease)) => lease,
            Ok(Claim::Busy { holder }) => {
                debug!(job.name = %spec.name, %holder, "job `{}` is run by {holder}", spec.name);
                return (self.clock.now() + TICK_INTERVAL).into();
            }
            Err(error) => return self.store_failed(&cycle.job, &error).into(),
        };
        stop.trust_lease_until(lease.trusted_until(sent));
        let is_open = |id: &Uuid| lease.requests.iter().any(|request| request.id == *id);
        self.remove_answered(open_requests.into_iter().filter(|id| !is_open(id)));
        let mut snapshot = JobSnapshot {
            began,
            state: lease.state.clone(),
            claim_hint: lease.claim_hint.take(),
            pauses: std::mem::take(&mut lease.pauses),
            requests: std::mem::take(&mut lease.requests),
        };
        let CycleEnd { next, released } = self.steps(cycle, Some(&lease), &stop, &mut snapshot).await;
        if released {
            return next;
        }
        lease.claim_hint = released_hint(spec, &snapshot);
        if let Err(error) = self.store.release(&lease).await {
            warn!(job.name = %spec.name, %error, "could not release the lease of job `{}`: {error}", spec.name);
        }
        next
    }

    /// Nothing is expected of a job that was removed. If it comes back, what passed meanwhile was not due.
    async fn retire(&self, cycle: &LeaseCycle) -> NextLook {
        let spec = &cycle.definition.spec;
        let now = self.clock.now();
        if spec.scope == Scope::Node {
            cycle.job.update_local(|local| {
                if let Some((_, hint)) = &mut local.local {
                    *hint = hint.as_ref().map(|hint| hint_of_removed_job(hint, now));
                }
            });
        } else {
            let Ok(Claim::Held(mut lease)) = self.store.acquire(&spec.name, first_cursor(spec, now)).await
            else {
                return (now + TICK_INTERVAL).into();
            };
            lease.claim_hint = lease.claim_hint.as_ref().map(|hint| hint_of_removed_job(hint, now));
            if self.store.release(&lease).await.is_err() {
                return (now + TICK_INTERVAL).into();
            }
        }
        DateTime::<Utc>::MAX_UTC.into()
    }

    async fn run_node_cycle(self: &Arc<Self>, cycle: &LeaseCycle) -> NextLook {
        let (job, spec) = (&cycle.job, &cycle.definition.spec);
        if lock(&self.control_state).is_none() {
            // It may be paused, and nobody has asked yet.
            self.poll_once().await;
        }
        let began = self.clock.now();
        // The job may be newer than the pause.
        let in_force = lock(&self.control_state)
            .as_ref()
            .and_then(|control_state| control_state.pause_of(&spec.name).cloned());
        job.update_local(|local| local.remember_pause(in_force.as_ref(), began));
        let (state, hint) = job
            .update_local(|local| local.local.take())
            .unwrap_or_else(|| (JobState::at(first_cursor(spec, began)), None));
        let pauses = job.update_local(|local| {
            local.pauses.retain(|pause| pause.until.is_none_or(|until| state.cursor < until));
            local.pauses.clone()
        });
        let mut snapshot = JobSnapshot { began, state, claim_hint: hint, pauses, requests: Vec::new() };
        let CycleEnd { next, .. } = self.steps(cycle, None, &StopHandle::new(), &mut snapshot).await;
        let hint = hint_for_release(spec, &snapshot);
        job.update_local(|local| local.local = Some((snapshot.state, hint)));
        next
    }

    /// Steps until there is nothing to do.
    async fn steps(
        &self,
        cycle: &LeaseCycle,
        lease: Option<&Lease>,
        stop: &StopHandle,
        snapshot: &mut JobSnapshot,
    ) -> CycleEnd {
        let job = &cycle.job;
        let running = Running {
            job: Arc::clone(job),
            stop: stop.clone(),
            lease: lease.cloned(),
            cancelled: None,
            followed_at: None,
        };
        lock(&self.running).insert(job.index, running);
        if let Some(lease) = lease {
            self.cancel_known(lease);
        }
        let end = self.run_actions(cycle, lease, stop, snapshot).await;
        lock(&self.running).remove(&job.index);
        match end {
            Ok(end) => {
                if let Some(local) = &mut *lock(&job.local) {
                    local.store_failures = 0;
                }
                end
            }
            Err(error) => self.store_failed(job, &error).into(),
        }
    }

    async fn run_actions(
        &self,
        cycle: &LeaseCycle,
        lease: Option<&Lease>,
        stop: &StopHandle,
        snapshot: &mut JobSnapshot,
    ) -> Result<CycleEnd, StoreError> {
        let spec = &cycle.definition.spec;
        let fencing_token = lease.map_or(FencingToken(0), |lease| lease.fencing_token);
        let mut has_run = false;
        loop {
            let mut now = self.clock.now();
            if self.is_closed() {
                return Ok((now + TICK_INTERVAL).into());
            }
            if lock(&self.due_queue).is_requeued(cycle.job.index) {
                // It may be paused or gone, or asked for: the next turn knows.
                return Ok(now.into());
            }
            if spec.scope == Scope::Node && lease.is_some() && snapshot.requests.is_empty() {
                return Ok(now.into());
            }
            let next = self.next_step(spec, lease, snapshot, now);
            let instant = match next {
                Ok(Action::Wait(at)) if at <= cycle.at && at - now <= LOOKAHEAD => Some(at),
                _ => None,
            };
            // Everything but the start itself is done before the instant.
            let next = instant.map_or(next, |at| next_action(spec, snapshot, at));
            let next = match next {
                Ok(next) => next,
                Err(error) => {
                    error!(job.name = %spec.name, %error, "job `{}` is not scheduled: {error}", spec.name);
                    return Ok((now + TimeDelta::minutes(1)).into());
                }
            };
            let ctx = match &next {
                Action::Run(run) => Some(self.context(spec, run, fencing_token, stop)),
                _ => None,
            };
            let mut ticket = None;
            if let Some(at) = instant {
                self.progress.wait_for(cycle.at, &cycle.gate);
                ticket = Some(cycle.gate.wait().await);
                now = self.clock.now();
                if now < at {
                    return Ok(at.into());
                }
                if now - at >= TICK_INTERVAL || lock(&self.due_queue).is_requeued(cycle.job.index) {
                    // More may have become due since, or somebody asks for something.
                    continue;
                }
            }
            let mut span = Span::none();
            let (record, state, applies_schedule_change) = match (next, ctx) {
                (Action::Wait(at), _) => return Ok(NextLook::instant(at).into()),
                (Action::Skip(pass), _) => {
                    let state = pass.state(snapshot.state.cursor);
                    (skip_record(spec, &pass, now), state, pass.applies_schedule_change)
                }
                (Action::Reset { request, reason }, _) => {
                    let (record, state) = reset_record(spec, request, &reason, snapshot.state.cursor, now);
                    (record, state, false)
                }
                (Action::Refuse { request, reason }, _) => {
                    (refusal_record(spec, &request, reason, now), snapshot.state.clone(), false)
                }
                (Action::Run(run), ctx) => {
                    let ctx = ctx.unwrap_or_else(|| self.context(spec, &run, fencing_token, stop));
                    let is_stopped =
                        ctx.stop_requested().is_some_and(|reason| has_run || reason != StopReason::Cancelled);
                    if is_stopped || self.is_closed() {
                        // The claim was answered late, an earlier run of this turn was asked to stop, or the process ends.
                        return Ok((now + TICK_INTERVAL).into());
                    }
                    if has_run && let Some(running) = lock(&self.running).get_mut(&cycle.job.index) {
                        running.followed_at = Some(self.clock.monotonic());
                    }
                    has_run = true;
                    cycle.release_late_slot();
                    span = spans::span(spec, &ctx);
                    let run_to_its_end = self.run(cycle, &run, &ctx, ticket.take(), &snapshot.state);
                    let (record, state) = run_to_its_end.instrument(span.clone()).await;
                    spans::ended(&span, &record);
                    (record, state, run.applies_schedule_change)
                }
            };
            drop(ticket);
            let record = RunRecord { fencing_token, per_node: spec.scope == Scope::Node, ..record };
            self.on_outcome(spec, &record);
            let after = snapshot.after(spec, &record, state, applies_schedule_change);
            let over = over(spec, cycle.at, &record, &after, self.clock.now()).filter(|_| lease.is_some());
            if over.is_some() {
                // What is given back is not renewed.
                lock(&self.running).remove(&cycle.job.index);
            }
            let lease = lease.map(|lease| Lease { claim_hint: released_hint(spec, &after), ..lease.clone() });
            let writing = self.write(spec, lease.as_ref(), over.is_some(), (&record, &after.state), snapshot);
            let passed = writing.instrument(span).await?;
            self.remove_answered(record.request);
            if let Some(next) = over {
                return Ok(CycleEnd { next, released: true });
            }
            *snapshot = passed.map_or(after, |(passed, state)| {
                snapshot.after(spec, &passed, state, applies_schedule_change)
            });
            if record.status == RunStatus::Interrupted {
                return Ok((self.clock.now() + TICK_INTERVAL).into());
            }
        }
    }

    /// Writes a row and where the schedule stands after it, and gives the lease back if it `is_last`. A scheduled time that an
    /// earlier run has finished, which a reset makes possible, is passed over instead: that row and state are returned.
    async fn write(
        &self,
        spec: &JobSpec,
        lease: Option<&Lease>,
        is_last: bool,
        (record, state): (&RunRecord, &JobState),
        before: &JobSnapshot,
    ) -> Result<Option<(RunRecord, JobState)>, StoreError> {
        let write = async |record: &RunRecord, state: &JobState| match lease {
            Some(lease) if is_last => self.store.finish(lease, record, state).await,
            _ => self.store.record(lease, record, state).await,
        };
        match write(record, state).await {
            // Only this node runs it: an answer was lost, and what it recorded then was this very occurrence.
            Err(StoreError::AlreadyFinished { .. }) if lease.is_none() => Ok(None),
            Err(StoreError::AlreadyFinished { .. }) => {
                let (passed, state) = already_finished_record(spec, record, before.state.cursor);
                self.on_outcome(spec, &passed);
                write(&passed, &state).await?;
                Ok(Some((passed, state)))
            }
            written => written.map(|()| None),
        }
    }

    /// What a turn does next.
    fn next_step(
        &self,
        spec: &JobSpec,
        lease: Option<&Lease>,
        snapshot: &JobSnapshot,
        now: DateTime<Utc>,
    ) -> Result<Action, ScheduleError> {
        let next = next_action(spec, snapshot, now);
        let Ok(Action::Wait(until)) = next else { return next };
        if !self.is_ahead(spec, snapshot, until, now) || lease.is_some() {
            return next;
        }
        // Only this node runs it, by this clock.
        Ok(Action::Reset { request: None, reason: "the clock was set back".to_owned() })
    }

    /// Whether the schedule is finished up to a future time, because this clock was ahead or another one is. That is logged once. A
    /// job that daemons share then waits until somebody resets it: the clock of one of them may be the one that is wrong.
    fn is_ahead(
        &self,
        spec: &JobSpec,
        snapshot: &JobSnapshot,
        until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> bool {
        let (name, cursor) = (&spec.name, snapshot.state.cursor);
        let waits =
            snapshot.state.retrying.is_some() || snapshot.pauses.iter().any(|pause| pause.until.is_none());
        if waits || !ScheduleAhead::is_ahead(cursor, now) {
            if lock(&self.ahead).remove(name).is_some() {
                info!(job.name = %name, ahead = false, "job `{name}` follows its schedule again");
            }
            return false;
        }
        let ahead = ScheduleAhead { cursor, until: Some(until) };
        if lock(&self.ahead).insert(name.clone(), cursor) != Some(cursor) {
            let advice = match spec.scope {
                Scope::Node => "it continues from now on".to_owned(),
                Scope::Cluster => format!("`jobs reset {name} --reason TEXT` lets it run from now on"),
            };
            error!(job.name = %name, ahead = true, %until, "job `{name}` {ahead}; {advice}");
        }
        true
    }

    fn context(
        &self,
        spec: &JobSpec,
        run: &NextRun,
        fencing_token: FencingToken,
        stop: &StopHandle,
    ) -> JobContext {
        let occurrence = Occurrence { job: spec.name.clone(), scheduled_at: run.scheduled_at };
        JobContext::new(occurrence, run.attempt, fencing_token, Arc::clone(&self.clock), stop.clone())
            .with_request(run.request)
            .with_mask(&lock(&self.mask))
    }

    /// Makes a run; returns its row and where the schedule stands after it.
    async fn run(
        &self,
        cycle: &LeaseCycle,
        run: &NextRun,
        ctx: &JobContext,
        ticket: Option<StartTicket>,
        state: &JobState,
    ) -> (RunRecord, JobState) {
        let spec = &cycle.definition.spec;
        let started_at = self.clock.now();
        drop(ticket);
        let result = match ctx.stop_requested() {
            // It was cancelled before it began.
            Some(_) => Ok(Outcome::Interrupted { items: 0 }),
            None => self.execute(cycle, ctx).await,
        };
        let finished_at = self.clock.now();
        cycle.gate.all_started().await;
        let finished = matches!(result, Ok(Outcome::Done { .. }));
        let cancelled =
            lock(&self.running).get(&cycle.job.index).and_then(|running| running.cancelled.clone());
        let cancelled = cancelled.filter(|_| !finished);
        let mut settled = apply_outcome(spec, state, run.scheduled_at, run.attempt, result, finished_at);
        if cancelled.is_some() {
            // Whoever cancels a run does not want it again.
            settled.status = RunStatus::Interrupted;
            settled.state = JobState::at(state.cursor.max(run.scheduled_at));
        }
        if run.cause != RunCause::Schedule {
            // Whoever asked sees how it ended, and asks again if it should be tried again.
            if settled.status == RunStatus::Retrying {
                settled.status = RunStatus::Dead;
            }
            settled.state = state.clone();
        }
        // What a drain interrupts is still to be done.
        let is_open = settled.status == RunStatus::Interrupted && cancelled.is_none();
        let reason = [run.reason.clone(), cancelled].into_iter().flatten().collect::<Vec<_>>().join("; ");
        // The one place where what a job returns becomes what everyone may read.
        let mask = ctx.mask();
        let mut details = if settled.details.is_null() { ctx.reported() } else { settled.details };
        mask.apply_to_json(&mut details);
        let record = RunRecord {
            range: run.since.and_then(|since| occurrence_range(&spec.schedule, since, run.scheduled_at)),
            attempt: run.attempt,
            finished_at,
            items: settled.items,
            request: run.request.filter(|_| !is_open),
            reason: Some(reason).filter(|reason| !reason.is_empty()),
            error: settled.error.map(|error| mask.apply(&error).into_owned()),
            details,
            ..RunRecord::of(ctx.run_id, &spec.name, run.scheduled_at, settled.status, run.cause, started_at)
        };
        (record, settled.state)
    }

    async fn execute(&self, cycle: &LeaseCycle, ctx: &JobContext) -> Result<Outcome, JobError> {
        let definition = &cycle.definition;
        let guarded = Executor::new(Arc::clone(&definition.job), definition.spec.timeout);
        let result = catch_unwind(Next::through(&self.middleware, &guarded).run(ctx)).await;
        if let Some(abandoned) = guarded.into_abandoned() {
            cycle.job.update_local(|local| local.abandoned = Some(abandoned));
        }
        result
    }

    fn on_outcome(&self, spec: &JobSpec, run: &RunRecord) {
        for middleware in &self.middleware {
            if let Err(panic) = catch(|| middleware.on_outcome(spec, run)) {
                error!(job.name = %spec.name, "a middleware panicked when job `{}` was settled: {panic}", spec.name);
            }
        }
    }

    fn store_failed(&self, job: &ScheduledJob, error: &StoreError) -> DateTime<Utc> {
        let name = &job.name;
        let failures = job.update_local(|local| {
            local.store_failures += 1;
            local.store_failures - 1
        });
        let wait = (TICK_INTERVAL * 2_i32.pow(failures.min(5))).min(MAX_STORE_BACKOFF);
        match error {
            StoreError::LeaseLost { .. }
            | StoreError::AlreadyFinished { .. }
            | StoreError::UnknownJob { .. } => {
                warn!(job.name = %name, %error, "{error}: another daemon goes on with it");
            }
            StoreError::Unavailable(_) => {
                error!(job.name = %name, %error, "job `{name}` cannot reach its store, next try in {} s: {error}", wait.num_seconds());
            }
        }
        self.clock.now() + wait
    }
}

impl LeaseCycle {
    /// What it does from here on may take any time: others that are late go on.
    fn release_late_slot(&self) {
        if self.holds_late_slot.swap(false, Ordering::SeqCst) {
            lock(&self.inner.due_queue).release_late_slot();
            self.inner.arm_late();
        }
    }
}

/// What is expected of a job when its lease goes back. Of one that each node runs by itself nothing is.
fn released_hint(spec: &JobSpec, snapshot: &JobSnapshot) -> Option<ClaimHint> {
    (spec.scope == Scope::Cluster).then(|| hint_for_release(spec, snapshot)).flatten()
}

/// When to look at a job again if its turn has nothing to do after `record`.
fn over(
    spec: &JobSpec,
    at: DateTime<Utc>,
    record: &RunRecord,
    after: &JobSnapshot,
    now: DateTime<Utc>,
) -> Option<NextLook> {
    if record.status == RunStatus::Interrupted {
        return Some((now + TICK_INTERVAL).into());
    }
    match next_action(spec, after, now) {
        Ok(Action::Wait(next)) if next > at => Some(NextLook::instant(next)),
        _ => None,
    }
}

/// The end of a turn, also if it is by a panic.
impl Drop for LeaseCycle {
    fn drop(&mut self) {
        lock(&self.inner.running).remove(&self.job.index);
        {
            let mut due_queue = lock(&self.inner.due_queue);
            due_queue.put(self.job.index, self.next.at);
            if *self.holds_late_slot.get_mut() {
                due_queue.release_late_slot();
            }
        }
        if self.next.is_instant {
            self.inner.arm_next(self.job.index);
        }
        self.inner.arm_late();
    }
}
