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
    due_queue::Look,
    executor::{Guarded, catch, contained},
    scheduled_job::{Definition, Entry},
    shared::{AHEAD, Inner, RING, lock},
    start_gate::{Burst, Seat},
};
use crate::{
    job::{FencingToken, JobContext, JobError, Occurrence, Outcome, StopHandle, StopReason},
    runtime::{
        decide::{
            JobSpec, ScheduleError, Scope,
            next_action::{
                Run, Standing, Step, finished_before, first_cursor, leave, passed, refused, removed, reset,
                step, stretch,
            },
            settle,
        },
        middleware::Next,
        spans,
        store::{Ahead, Claim, JobState, Lease, Plan, RunRecord, RunStatus, StoreError, Trigger},
    },
};

/// The longest wait before the store is asked again after it failed.
const MAX_STORE_BACKOFF: TimeDelta = TimeDelta::seconds(30);

/// One turn of one job.
pub(super) struct Turn {
    inner: Arc<Inner>,
    entry: Arc<Entry>,
    definition: Arc<Definition>,
    /// When the job is expected to be due; the begin of the turn, if that has passed.
    at: DateTime<Utc>,
    /// Those that are due then.
    burst: Arc<Burst>,
    /// It takes the place of another one that is late, until it has decided.
    is_in_crowd: AtomicBool,
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
    pub(super) job: Arc<Entry>,
    pub(super) stop: StopHandle,
    pub(super) lease: Option<Lease>,
    /// Who cancelled it and why, in a sentence.
    pub(super) cancelled: Option<String>,
    /// When a run followed another one under this claim, by the monotonic clock.
    pub(super) followed_at: Option<Duration>,
}

/// How the steps of a turn ended.
struct End {
    next: NextLook,
    /// The lease went back with the last record.
    released: bool,
}

impl<T: Into<NextLook>> From<T> for End {
    fn from(next: T) -> Self {
        Self { next: next.into(), released: false }
    }
}

impl Inner {
    pub(super) async fn look(self: Arc<Self>, entry: Arc<Entry>, look: Look, burst: Arc<Burst>) {
        let now = self.clock.now();
        // However this ends, the job is looked at again.
        let mut turn = Turn {
            definition: entry.definition(),
            entry,
            at: if look.is_late { now } else { look.at },
            burst,
            is_in_crowd: AtomicBool::new(look.is_late),
            next: (now + RING).into(),
            inner: self,
        };
        let inner = &turn.inner;
        if !inner.is_closed() {
            turn.next = inner.turn(&turn).await;
            turn.inner.wait_for_leftover(&turn.entry).await;
        }
    }

    /// Waits for the end of a run that was given up. Its lease is free for other processes meanwhile, but in this one the job
    /// stays as it is: one that never gives its threads back would take them all, one run after the other.
    async fn wait_for_leftover(&self, entry: &Entry) {
        let leftover = lock(&entry.memory).as_mut().and_then(|memory| memory.leftover.take());
        let Some(leftover) = leftover else { return };
        let name = &entry.name;
        let mut ended = pin!(leftover.ended());
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
    async fn turn(self: &Arc<Self>, turn: &Turn) -> NextLook {
        let spec = &turn.definition.spec;
        if turn.entry.is_removed() {
            return self.leave(turn).await;
        }
        match spec.scope {
            Scope::Cluster => self.turn_under_lease(turn).await,
            Scope::Node => {
                // What a person asks for runs once, on the node that claims it.
                let mut asked = None;
                if self.is_asked_for(&spec.name) {
                    asked = Some(self.turn_under_lease(turn).await);
                }
                let next = self.turn_of_node(turn).await;
                // It may still be to do, if somebody else had the claim.
                asked.filter(|_| self.is_asked_for(&spec.name)).map_or(next, |asked| next.earlier(asked))
            }
        }
    }

    async fn turn_under_lease(&self, turn: &Turn) -> NextLook {
        let spec = &turn.definition.spec;
        let began = self.clock.now();
        let stop = StopHandle::new();
        let asked_for = self.asked_for(&spec.name);
        let sent = self.clock.monotonic();
        let mut lease = match self.store.acquire(&spec.name, first_cursor(spec, began)).await {
            Ok(Claim::Held(lease)) => lease,
            Ok(Claim::Busy { holder }) => {
                debug!(job.name = %spec.name, %holder, "job `{}` is run by {holder}", spec.name);
                return (self.clock.now() + RING).into();
            }
            Err(error) => return self.store_failed(&turn.entry, &error).into(),
        };
        stop.trust_lease_until(lease.trusted_until(sent));
        let is_open = |id: &Uuid| lease.requests.iter().any(|request| request.id == *id);
        self.forget(asked_for.into_iter().filter(|id| !is_open(id)));
        let mut standing = Standing {
            began,
            state: lease.state.clone(),
            plan: lease.plan.take(),
            pauses: std::mem::take(&mut lease.pauses),
            requests: std::mem::take(&mut lease.requests),
        };
        let End { next, released } = self.steps(turn, Some(&lease), &stop, &mut standing).await;
        if released {
            return next;
        }
        lease.plan = left(spec, &standing);
        if let Err(error) = self.store.release(&lease).await {
            warn!(job.name = %spec.name, %error, "could not release the lease of job `{}`: {error}", spec.name);
        }
        next
    }

    /// Nothing is expected of a job that was removed. If it comes back, what passed meanwhile was not due.
    async fn leave(&self, turn: &Turn) -> NextLook {
        let spec = &turn.definition.spec;
        let now = self.clock.now();
        if spec.scope == Scope::Node {
            turn.entry.remember(|memory| {
                if let Some((_, plan)) = &mut memory.local {
                    *plan = plan.as_ref().map(|plan| removed(plan, now));
                }
            });
        } else {
            let Ok(Claim::Held(mut lease)) = self.store.acquire(&spec.name, first_cursor(spec, now)).await
            else {
                return (now + RING).into();
            };
            lease.plan = lease.plan.as_ref().map(|plan| removed(plan, now));
            if self.store.release(&lease).await.is_err() {
                return (now + RING).into();
            }
        }
        DateTime::<Utc>::MAX_UTC.into()
    }

    async fn turn_of_node(self: &Arc<Self>, turn: &Turn) -> NextLook {
        let (entry, spec) = (&turn.entry, &turn.definition.spec);
        if lock(&self.wishes).is_none() {
            // It may be paused, and nobody has asked yet.
            self.ask_once().await;
        }
        let began = self.clock.now();
        // The job may be newer than the pause.
        let in_force = lock(&self.wishes).as_ref().and_then(|wishes| wishes.pause_of(&spec.name).cloned());
        entry.remember(|memory| memory.remember_pause(in_force.as_ref(), began));
        let (state, plan) = entry
            .remember(|memory| memory.local.take())
            .unwrap_or_else(|| (JobState::at(first_cursor(spec, began)), None));
        let pauses = entry.remember(|memory| {
            memory.pauses.retain(|pause| pause.until.is_none_or(|until| state.cursor < until));
            memory.pauses.clone()
        });
        let mut standing = Standing { began, state, plan, pauses, requests: Vec::new() };
        let End { next, .. } = self.steps(turn, None, &StopHandle::new(), &mut standing).await;
        let plan = leave(spec, &standing);
        entry.remember(|memory| memory.local = Some((standing.state, plan)));
        next
    }

    /// Steps until there is nothing to do.
    async fn steps(
        &self,
        turn: &Turn,
        lease: Option<&Lease>,
        stop: &StopHandle,
        standing: &mut Standing,
    ) -> End {
        let entry = &turn.entry;
        let running = Running {
            job: Arc::clone(entry),
            stop: stop.clone(),
            lease: lease.cloned(),
            cancelled: None,
            followed_at: None,
        };
        lock(&self.running).insert(entry.place, running);
        if let Some(lease) = lease {
            self.cancel_known(lease);
        }
        let end = self.take_steps(turn, lease, stop, standing).await;
        lock(&self.running).remove(&entry.place);
        match end {
            Ok(end) => {
                if let Some(memory) = &mut *lock(&entry.memory) {
                    memory.store_failures = 0;
                }
                end
            }
            Err(error) => self.store_failed(entry, &error).into(),
        }
    }

    async fn take_steps(
        &self,
        turn: &Turn,
        lease: Option<&Lease>,
        stop: &StopHandle,
        standing: &mut Standing,
    ) -> Result<End, StoreError> {
        let spec = &turn.definition.spec;
        let fence = lease.map_or(FencingToken(0), |lease| lease.fence);
        let mut has_run = false;
        loop {
            let mut now = self.clock.now();
            if self.is_closed() {
                return Ok((now + RING).into());
            }
            if lock(&self.agenda).is_wanted_again(turn.entry.place) {
                // It may be paused or gone, or asked for: the next turn knows.
                return Ok(now.into());
            }
            if spec.scope == Scope::Node && lease.is_some() && standing.requests.is_empty() {
                return Ok(now.into());
            }
            let next = self.next_step(spec, lease, standing, now);
            let instant = match next {
                Ok(Step::Wait(at)) if at <= turn.at && at - now <= AHEAD => Some(at),
                _ => None,
            };
            // Everything but the start itself is done before the instant.
            let next = instant.map_or(next, |at| step(spec, standing, at));
            let next = match next {
                Ok(next) => next,
                Err(error) => {
                    error!(job.name = %spec.name, %error, "job `{}` is not scheduled: {error}", spec.name);
                    return Ok((now + TimeDelta::minutes(1)).into());
                }
            };
            let ctx = match &next {
                Step::Run(run) => Some(self.context(spec, run, fence, stop)),
                _ => None,
            };
            let mut seat = None;
            if let Some(at) = instant {
                self.progress.wait_for(turn.at, &turn.burst);
                seat = Some(turn.burst.instant().await);
                now = self.clock.now();
                if now < at {
                    return Ok(at.into());
                }
                if now - at >= RING || lock(&self.agenda).is_wanted_again(turn.entry.place) {
                    // More may have become due since, or somebody asks for something.
                    continue;
                }
            }
            let mut span = Span::none();
            let (record, state, adopts) = match (next, ctx) {
                (Step::Wait(at), _) => return Ok(NextLook::instant(at).into()),
                (Step::Pass(pass), _) => {
                    let state = pass.state(standing.state.cursor);
                    (passed(spec, &pass, now), state, pass.adopts)
                }
                (Step::Reset { request, reason }, _) => {
                    let (record, state) = reset(spec, request, &reason, standing.state.cursor, now);
                    (record, state, false)
                }
                (Step::Refuse { request, reason }, _) => {
                    (refused(spec, &request, reason, now), standing.state.clone(), false)
                }
                (Step::Run(run), ctx) => {
                    let ctx = ctx.unwrap_or_else(|| self.context(spec, &run, fence, stop));
                    let is_stopped =
                        ctx.stop_requested().is_some_and(|reason| has_run || reason != StopReason::Cancelled);
                    if is_stopped || self.is_closed() {
                        // The claim was answered late, an earlier run of this turn was asked to stop, or the process ends.
                        return Ok((now + RING).into());
                    }
                    if has_run && let Some(running) = lock(&self.running).get_mut(&turn.entry.place) {
                        running.followed_at = Some(self.clock.monotonic());
                    }
                    has_run = true;
                    turn.leave_crowd();
                    span = spans::span(spec, &ctx);
                    let run_to_its_end = self.run(turn, &run, &ctx, seat.take(), &standing.state);
                    let (record, state) = run_to_its_end.instrument(span.clone()).await;
                    spans::ended(&span, &record);
                    (record, state, run.adopts)
                }
            };
            drop(seat);
            let record = RunRecord { fence, per_node: spec.scope == Scope::Node, ..record };
            self.settled(spec, &record);
            let after = standing.after(spec, &record, state, adopts);
            let over = over(spec, turn.at, &record, &after, self.clock.now()).filter(|_| lease.is_some());
            if over.is_some() {
                // What is given back is not renewed.
                lock(&self.running).remove(&turn.entry.place);
            }
            let lease = lease.map(|lease| Lease { plan: left(spec, &after), ..lease.clone() });
            let writing = self.write(spec, lease.as_ref(), over.is_some(), (&record, &after.state), standing);
            let passed = writing.instrument(span).await?;
            self.forget(record.request);
            if let Some(next) = over {
                return Ok(End { next, released: true });
            }
            *standing = passed.map_or(after, |(passed, state)| standing.after(spec, &passed, state, adopts));
            if record.status == RunStatus::Interrupted {
                return Ok((self.clock.now() + RING).into());
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
        before: &Standing,
    ) -> Result<Option<(RunRecord, JobState)>, StoreError> {
        let write = async |record: &RunRecord, state: &JobState| match lease {
            Some(lease) if is_last => self.store.finish(lease, record, state).await,
            _ => self.store.record(lease, record, state).await,
        };
        match write(record, state).await {
            // Only this node runs it: an answer was lost, and what it recorded then was this very occurrence.
            Err(StoreError::AlreadyFinished { .. }) if lease.is_none() => Ok(None),
            Err(StoreError::AlreadyFinished { .. }) => {
                let (passed, state) = finished_before(spec, record, before.state.cursor);
                self.settled(spec, &passed);
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
        standing: &Standing,
        now: DateTime<Utc>,
    ) -> Result<Step, ScheduleError> {
        let next = step(spec, standing, now);
        let Ok(Step::Wait(until)) = next else { return next };
        if !self.is_ahead(spec, standing, until, now) || lease.is_some() {
            return next;
        }
        // Only this node runs it, by this clock.
        Ok(Step::Reset { request: None, reason: "the clock was set back".to_owned() })
    }

    /// Whether the schedule is finished up to a future time, because this clock was ahead or another one is. That is logged once. A
    /// job that daemons share then waits until somebody resets it: the clock of one of them may be the one that is wrong.
    fn is_ahead(
        &self,
        spec: &JobSpec,
        standing: &Standing,
        until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> bool {
        let (name, cursor) = (&spec.name, standing.state.cursor);
        let waits =
            standing.state.retrying.is_some() || standing.pauses.iter().any(|pause| pause.until.is_none());
        if waits || !Ahead::is_ahead(cursor, now) {
            if lock(&self.ahead).remove(name).is_some() {
                info!(job.name = %name, ahead = false, "job `{name}` follows its schedule again");
            }
            return false;
        }
        let ahead = Ahead { cursor, until: Some(until) };
        if lock(&self.ahead).insert(name.clone(), cursor) != Some(cursor) {
            let advice = match spec.scope {
                Scope::Node => "it continues from now on".to_owned(),
                Scope::Cluster => format!("`jobs reset {name} --reason TEXT` lets it run from now on"),
            };
            error!(job.name = %name, ahead = true, %until, "job `{name}` {ahead}; {advice}");
        }
        true
    }

    fn context(&self, spec: &JobSpec, run: &Run, fence: FencingToken, stop: &StopHandle) -> JobContext {
        let occurrence = Occurrence { job: spec.name.clone(), scheduled_at: run.scheduled_at };
        JobContext::new(occurrence, run.attempt, fence, Arc::clone(&self.clock), stop.clone())
            .with_request(run.request)
            .with_mask(&lock(&self.mask))
    }

    /// Makes a run; returns its row and where the schedule stands after it.
    async fn run(
        &self,
        turn: &Turn,
        run: &Run,
        ctx: &JobContext,
        seat: Option<Seat>,
        state: &JobState,
    ) -> (RunRecord, JobState) {
        let spec = &turn.definition.spec;
        let started_at = self.clock.now();
        drop(seat);
        let result = match ctx.stop_requested() {
            // It was cancelled before it began.
            Some(_) => Ok(Outcome::Interrupted { items: 0 }),
            None => self.execute(turn, ctx).await,
        };
        let finished_at = self.clock.now();
        turn.burst.all_begun().await;
        let finished = matches!(result, Ok(Outcome::Done { .. }));
        let cancelled =
            lock(&self.running).get(&turn.entry.place).and_then(|running| running.cancelled.clone());
        let cancelled = cancelled.filter(|_| !finished);
        let mut settled = settle(spec, state, run.scheduled_at, run.attempt, result, finished_at);
        if cancelled.is_some() {
            // Whoever cancels a run does not want it again.
            settled.status = RunStatus::Interrupted;
            settled.state = JobState::at(state.cursor.max(run.scheduled_at));
        }
        if run.trigger != Trigger::Schedule {
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
            stretch: run.since.and_then(|since| stretch(&spec.schedule, since, run.scheduled_at)),
            attempt: run.attempt,
            finished_at,
            items: settled.items,
            request: run.request.filter(|_| !is_open),
            reason: Some(reason).filter(|reason| !reason.is_empty()),
            error: settled.error.map(|error| mask.apply(&error).into_owned()),
            details,
            ..RunRecord::of(ctx.run_id, &spec.name, run.scheduled_at, settled.status, run.trigger, started_at)
        };
        (record, settled.state)
    }

    async fn execute(&self, turn: &Turn, ctx: &JobContext) -> Result<Outcome, JobError> {
        let definition = &turn.definition;
        let guarded = Guarded::new(Arc::clone(&definition.job), definition.spec.timeout);
        let result = contained(Next::through(&self.middleware, &guarded).run(ctx)).await;
        if let Some(leftover) = guarded.into_leftover() {
            turn.entry.remember(|memory| memory.leftover = Some(leftover));
        }
        result
    }

    fn settled(&self, spec: &JobSpec, run: &RunRecord) {
        for middleware in &self.middleware {
            if let Err(panic) = catch(|| middleware.settled(spec, run)) {
                error!(job.name = %spec.name, "a middleware panicked when job `{}` was settled: {panic}", spec.name);
            }
        }
    }

    fn store_failed(&self, entry: &Entry, error: &StoreError) -> DateTime<Utc> {
        let name = &entry.name;
        let failures = entry.remember(|memory| {
            memory.store_failures += 1;
            memory.store_failures - 1
        });
        let wait = (RING * 2_i32.pow(failures.min(5))).min(MAX_STORE_BACKOFF);
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

impl Turn {
    /// What it does from here on may take any time: others that are late go on.
    fn leave_crowd(&self) {
        if self.is_in_crowd.swap(false, Ordering::SeqCst) {
            lock(&self.inner.agenda).leave_crowd();
            self.inner.arm_late();
        }
    }
}

/// What is expected of a job when its lease goes back. Of one that each node runs by itself nothing is.
fn left(spec: &JobSpec, standing: &Standing) -> Option<Plan> {
    (spec.scope == Scope::Cluster).then(|| leave(spec, standing)).flatten()
}

/// When to look at a job again if its turn has nothing to do after `record`.
fn over(
    spec: &JobSpec,
    at: DateTime<Utc>,
    record: &RunRecord,
    after: &Standing,
    now: DateTime<Utc>,
) -> Option<NextLook> {
    if record.status == RunStatus::Interrupted {
        return Some((now + RING).into());
    }
    match step(spec, after, now) {
        Ok(Step::Wait(next)) if next > at => Some(NextLook::instant(next)),
        _ => None,
    }
}

/// The end of a turn, also if it is by a panic.
impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.inner.running).remove(&self.entry.place);
        {
            let mut agenda = lock(&self.inner.agenda);
            agenda.put(self.entry.place, self.next.at);
            if *self.is_in_crowd.get_mut() {
                agenda.leave_crowd();
            }
        }
        if self.next.is_instant {
            self.inner.arm_next(self.entry.place);
        }
        self.inner.arm_late();
    }
}
