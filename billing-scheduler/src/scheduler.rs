//! Turns of jobs: acquire, due, run, record, ask again, release. Catch-up, restart and take-over are this one path.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use tokio::{runtime::Handle, sync::watch, task::JoinSet};
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use crate::{
    BuildError, Changes, Claim, Clock, Control, FencingToken, Job, JobContext, JobError, JobSpec, JobState,
    Late, Lease, Middleware, Next, Occurrence, Outcome, Pause, Plan, Registry, Request, RunRecord, RunStatus,
    Scope, StopHandle, StopReason, Store, StoreError, Trigger, What, Wishes,
    agenda::{Agenda, Look},
    burst::{Burst, Seat},
    guard::{Guarded, Leftover, catch, contained},
    reload::changes,
    settle,
    step::{Pass, Run, Standing, Step, leave, plan, removed, step, stretch},
};

/// How soon the next tick comes.
const RING: TimeDelta = TimeDelta::seconds(1);
/// A tick arms everything that is due up to so much later: until the next one comes, and long enough that what follows it
/// at once is claimed by then.
const AHEAD: TimeDelta = TimeDelta::milliseconds(1_250);
/// Late jobs are looked for at each so many-th question to the store.
const LATE_EVERY: u32 = 10;
/// The longest wait before the store is asked again after it failed.
const MAX_STORE_BACKOFF: TimeDelta = TimeDelta::seconds(30);

/// Runs jobs when they are due. It does not own the time: something calls [`Scheduler::tick`] about once a second, and
/// something else, on a thread of its own, [`Scheduler::renew_leases`].
#[derive(Clone)]
pub struct Scheduler {
    inner: Arc<Inner>,
}

/// What became of the turns in hand when the scheduler was drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Turns that did not end in time and were abandoned. Their occurrences run again.
    pub abandoned: usize,
}

struct Inner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    middleware: Vec<Arc<dyn Middleware>>,
    entries: RwLock<Vec<Arc<Entry>>>,
    /// Of the jobs by their place in `entries`.
    agenda: Mutex<Agenda>,
    closed: watch::Sender<bool>,
    turns: Mutex<JoinSet<()>>,
    /// The question to the store what people ask for: one at a time.
    questions: Mutex<JoinSet<()>>,
    /// By the place of the job, and in that order, so that a simulation repeats itself.
    running: Mutex<BTreeMap<usize, Running>>,
    wishes: Mutex<Option<Wishes>>,
    watch: Mutex<Watch>,
    /// What the wall clock and the monotonic one showed at the last tick.
    last_tick: Mutex<Option<(DateTime<Utc>, Duration)>>,
}

struct Entry {
    name: String,
    /// In the entries and in the agenda.
    place: usize,
    definition: Mutex<Arc<Definition>>,
    /// The configuration does not have it any more.
    removed: AtomicBool,
    memory: Mutex<Option<Box<Memory>>>,
}

/// What a configuration says about a job. A run keeps the one that it began with.
struct Definition {
    spec: JobSpec,
    params: serde_json::Value,
    job: Arc<dyn Job>,
}

/// What is remembered between two looks at a job.
#[derive(Default)]
struct Memory {
    /// How many times in a row the store failed.
    store_failures: u32,
    /// Where the schedule stands, for a job that each node runs by itself.
    local: Option<(JobState, Option<Plan>)>,
    /// When it was paused since this process runs.
    pauses: Vec<Pause>,
    /// A run that was given up and may still be there.
    leftover: Option<Leftover>,
}

/// One turn of one job.
struct Turn {
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
    next: DateTime<Utc>,
}

struct Running {
    job: Arc<Entry>,
    stop: StopHandle,
    lease: Option<Lease>,
    /// Who cancelled it and why, in a sentence.
    cancelled: Option<String>,
}

/// What is remembered about questions to the store.
#[derive(Default)]
struct Watch {
    asked: u32,
    failed: bool,
    /// Late jobs that were reported already.
    late: BTreeSet<(String, DateTime<Utc>)>,
}

impl Scheduler {
    /// Makes the jobs of `specs` from the kinds in `registry`.
    ///
    /// `params` gives the parameters of a job by its name.
    pub fn build(
        registry: &Registry,
        specs: impl IntoIterator<Item = (JobSpec, serde_json::Value)>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, BuildError> {
        let mut agenda = Agenda::default();
        let entries = specs
            .into_iter()
            .map(|(spec, params)| {
                let definition = Definition::build(registry, spec, params)?;
                Ok(Arc::new(Entry::new(agenda.add(), definition)))
            })
            .collect::<Result<Vec<_>, BuildError>>()?;
        let inner = Inner {
            store,
            clock,
            middleware: registry.middleware(),
            entries: RwLock::new(entries),
            agenda: Mutex::new(agenda),
            closed: watch::Sender::new(false),
            turns: Mutex::default(),
            questions: Mutex::default(),
            running: Mutex::default(),
            wishes: Mutex::default(),
            watch: Mutex::default(),
            last_tick: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Starts a turn for each job that is due before the next tick; each fires at its exact instant. Asks the store what people
    /// want. Never waits.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn tick(&self) {
        if self.inner.is_closed() {
            return;
        }
        let now = self.inner.clock.now();
        if self.inner.clock_was_set_back(now) {
            lock(&self.inner.agenda).look_at_all();
        }
        self.inner.arm(now, now + AHEAD);
        self.inner.ask();
    }

    /// Puts another configuration into force, and tells what it changes. Runs under way go on as they began; a job that is there no
    /// more is not run again. With an edited schedule, a scheduled time that passed under the old one without a run still runs,
    /// and those of the new one that passed before the edit do not.
    ///
    /// A job is made anew if its kind, its parameters or `renew` say so, and keeps what it remembers otherwise.
    ///
    /// # Errors
    /// A job cannot be made. Nothing has changed then.
    pub fn reload(
        &self,
        registry: &Registry,
        specs: impl IntoIterator<Item = (JobSpec, serde_json::Value)>,
        renew: impl Fn(&JobSpec) -> bool,
    ) -> Result<Changes, BuildError> {
        let specs: Vec<_> = specs.into_iter().collect();
        let inner = &self.inner;
        let mut entries = inner.entries.write().unwrap_or_else(PoisonError::into_inner);
        let present: Vec<_> = entries.iter().filter(|entry| !entry.is_removed()).cloned().collect();
        let definitions: Vec<_> = present.iter().map(|entry| entry.definition()).collect();
        let before = definitions.iter().map(|definition| (&definition.spec, &definition.params));
        let changes = changes(before, specs.iter().map(|(spec, params)| (spec, params)));
        let mut made = Vec::new();
        for (spec, params) in specs {
            let old = definitions.iter().find(|old| old.spec.name == spec.name);
            let old = old.filter(|old| old.spec.kind == spec.kind && old.params == params && !renew(&spec));
            made.push(match old {
                Some(old) => Definition { spec, params, job: Arc::clone(&old.job) },
                None => Definition::build(registry, spec, params)?,
            });
        }
        for entry in present.iter().filter(|entry| changes.removed.contains(&entry.name)) {
            entry.removed.store(true, Ordering::SeqCst);
            lock(&inner.agenda).look_again(entry.place);
        }
        for definition in made {
            let is_changed = changes.changed.iter().any(|change| change.job == definition.spec.name);
            match entries.iter().find(|entry| entry.name == definition.spec.name) {
                Some(entry) => {
                    let was_removed = entry.removed.swap(false, Ordering::SeqCst);
                    *lock(&entry.definition) = Arc::new(definition);
                    if is_changed || was_removed {
                        lock(&inner.agenda).look_again(entry.place);
                    }
                }
                None => entries.push(Arc::new(Entry::new(lock(&inner.agenda).add(), definition))),
            }
        }
        Ok(changes)
    }

    /// Controls these jobs, and those of every other process on the same store, in the name of `by`.
    #[must_use]
    pub fn control(&self, by: impl Into<String>) -> Control {
        Control::new(Arc::clone(&self.inner.store), Arc::clone(&self.inner.clock), by)
    }

    /// Extends the lease of every turn under way. Call it about every third of a lease, from a thread that no job can
    /// block.
    pub async fn renew_leases(&self) {
        let held: Vec<(Lease, StopHandle)> = lock(&self.inner.running)
            .values()
            .filter_map(|running| Some((running.lease.clone()?, running.stop.clone())))
            .collect();
        for (lease, stop) in held {
            let sent = self.inner.clock.monotonic();
            match self.inner.store.renew(&lease).await {
                Ok(()) => stop.trust_lease_until(lease.trusted_until(sent)),
                Err(StoreError::LeaseLost { .. }) => {
                    stop.stop(StopReason::LeaseLost);
                    warn!(job.name = %lease.job, fence = %lease.fence, "job `{}` lost its lease: it stops", lease.job);
                }
                Err(error) => {
                    warn!(job.name = %lease.job, %error, "could not renew the lease of job `{}`: {error}", lease.job);
                }
            }
        }
    }

    /// Waits until no turn is armed or under way: for tests and one-off runs.
    pub async fn idle(&self) {
        loop {
            let mut questions = std::mem::take(&mut *lock(&self.inner.questions));
            let mut turns = std::mem::take(&mut *lock(&self.inner.turns));
            if turns.is_empty() && questions.is_empty() {
                return;
            }
            while questions.join_next().await.is_some() {}
            while turns.join_next().await.is_some() {}
        }
    }

    /// Starts nothing new, asks every run to stop, and waits for at most `grace` until they did.
    pub async fn drain(&self, grace: Duration) -> DrainReport {
        self.inner.closed.send_replace(true);
        for running in lock(&self.inner.running).values() {
            running.stop.stop(StopReason::Drain);
        }
        let mut turns = std::mem::take(&mut *lock(&self.inner.turns));
        // A question is not cancelled either: the connection that it is asked on would be lost with it.
        let mut questions = std::mem::take(&mut *lock(&self.inner.questions));
        let all_done = async {
            while turns.join_next().await.is_some() {}
            while questions.join_next().await.is_some() {}
        };
        tokio::select! {
            () = all_done => {}
            () = self.inner.clock.sleep(grace) => {}
        }
        let abandoned = turns.len();
        turns.abort_all();
        DrainReport { abandoned }
    }
}

impl Inner {
    /// Whether less time has passed on the wall than in truth since the last tick: times noted before are too late then.
    fn clock_was_set_back(&self, now: DateTime<Utc>) -> bool {
        let monotonic = self.clock.monotonic();
        let Some((then, monotonic_then)) = lock(&self.last_tick).replace((now, monotonic)) else {
            return false;
        };
        let passed = TimeDelta::from_std(monotonic.saturating_sub(monotonic_then));
        passed.is_ok_and(|passed| passed - (now - then) > RING)
    }

    fn entries(&self) -> RwLockReadGuard<'_, Vec<Arc<Entry>>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a turn for each job that is to be looked at up to `until`.
    fn arm(self: &Arc<Self>, now: DateTime<Utc>, until: DateTime<Utc>) {
        let looks = lock(&self.agenda).take(now, until);
        if looks.is_empty() {
            return;
        }
        let mut turns = lock(&self.turns);
        while turns.try_join_next().is_some() {}
        let entries = self.entries();
        for together in looks.chunk_by(|a, b| a.at == b.at) {
            let burst = Arc::<Burst>::default();
            if together[0].is_late {
                // Also for a turn that finds, after a clock was set back, that its instant is still to come.
                burst.begin();
            } else {
                turns.spawn(Arc::clone(self).await_instant(together[0].at, Arc::clone(&burst)));
            }
            for look in together {
                let entry = Arc::clone(&entries[look.job]);
                turns.spawn(Arc::clone(self).look(entry, *look, Arc::clone(&burst)));
            }
        }
    }

    /// Begins a burst at its instant, or when the scheduler is drained.
    async fn await_instant(self: Arc<Self>, at: DateTime<Utc>, burst: Arc<Burst>) {
        let mut closed = self.closed.subscribe();
        loop {
            let wait = at - self.clock.now();
            // What is farther away was not so when it was armed: the clock was set.
            let Some(wait) = wait.to_std().ok().filter(|left| !left.is_zero() && wait <= AHEAD) else {
                break;
            };
            tokio::select! {
                () = self.clock.sleep(wait) => {}
                _ = closed.wait_for(|closed| *closed) => break,
            }
        }
        burst.begin();
    }

    fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Looks at a job now, or as soon as its turn under way ends.
    fn wake(self: &Arc<Self>, entry: &Entry) {
        lock(&self.agenda).look_again(entry.place);
        self.arm_late();
    }

    /// Starts turns of jobs whose time has passed, as far as there is room for them.
    fn arm_late(self: &Arc<Self>) {
        // A turn may be dropped together with its runtime.
        if !self.is_closed() && Handle::try_current().is_ok() {
            let now = self.clock.now();
            self.arm(now, now);
        }
    }

    async fn look(self: Arc<Self>, entry: Arc<Entry>, look: Look, burst: Arc<Burst>) {
        let now = self.clock.now();
        // However this ends, the job is looked at again.
        let mut turn = Turn {
            definition: entry.definition(),
            entry,
            at: if look.is_late { now } else { look.at },
            burst,
            is_in_crowd: AtomicBool::new(look.is_late),
            next: now + RING,
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
    async fn turn(self: &Arc<Self>, turn: &Turn) -> DateTime<Utc> {
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
                asked.filter(|_| self.is_asked_for(&spec.name)).map_or(next, |at| at.min(next))
            }
        }
    }

    async fn turn_under_lease(&self, turn: &Turn) -> DateTime<Utc> {
        let spec = &turn.definition.spec;
        let began = self.clock.now();
        let stop = StopHandle::new();
        let asked_for = self.asked_for(&spec.name);
        let sent = self.clock.monotonic();
        let mut lease = match self.store.acquire(&spec.name, first_cursor(spec, began)).await {
            Ok(Claim::Held(lease)) => lease,
            Ok(Claim::Busy { holder }) => {
                debug!(job.name = %spec.name, %holder, "job `{}` is run by {holder}", spec.name);
                return self.clock.now() + RING;
            }
            Err(error) => return self.store_failed(&turn.entry, &error),
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
        let next = self.steps(turn, Some(&lease), &stop, &mut standing).await;
        if spec.scope == Scope::Cluster {
            lease.plan = leave(spec, &standing);
        }
        if let Err(error) = self.store.release(&lease).await {
            warn!(job.name = %spec.name, %error, "could not release the lease of job `{}`: {error}", spec.name);
        }
        next
    }

    /// Nothing is expected of a job that was removed. If it comes back, what passed meanwhile was not due.
    async fn leave(&self, turn: &Turn) -> DateTime<Utc> {
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
                return now + RING;
            };
            lease.plan = lease.plan.as_ref().map(|plan| removed(plan, now));
            if self.store.release(&lease).await.is_err() {
                return now + RING;
            }
        }
        DateTime::<Utc>::MAX_UTC
    }

    async fn turn_of_node(self: &Arc<Self>, turn: &Turn) -> DateTime<Utc> {
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
        let next = self.steps(turn, None, &StopHandle::new(), &mut standing).await;
        let plan = leave(spec, &standing);
        entry.remember(|memory| memory.local = Some((standing.state, plan)));
        next
    }

    /// Steps until there is nothing to do; returns when to look again.
    async fn steps(
        &self,
        turn: &Turn,
        lease: Option<&Lease>,
        stop: &StopHandle,
        standing: &mut Standing,
    ) -> DateTime<Utc> {
        let entry = &turn.entry;
        let running =
            Running { job: Arc::clone(entry), stop: stop.clone(), lease: lease.cloned(), cancelled: None };
        lock(&self.running).insert(entry.place, running);
        if let Some(lease) = lease {
            self.cancel_known(lease);
        }
        let next = self.take_steps(turn, lease, stop, standing).await;
        lock(&self.running).remove(&entry.place);
        match next {
            Ok(at) => {
                if let Some(memory) = &mut *lock(&entry.memory) {
                    memory.store_failures = 0;
                }
                at
            }
            Err(error) => self.store_failed(entry, &error),
        }
    }

    async fn take_steps(
        &self,
        turn: &Turn,
        lease: Option<&Lease>,
        stop: &StopHandle,
        standing: &mut Standing,
    ) -> Result<DateTime<Utc>, StoreError> {
        let spec = &turn.definition.spec;
        let fence = lease.map_or(FencingToken(0), |lease| lease.fence);
        let mut has_run = false;
        loop {
            let mut now = self.clock.now();
            if self.is_closed() {
                return Ok(now + RING);
            }
            if lock(&self.agenda).is_wanted_again(turn.entry.place) {
                // It may be paused or gone, or asked for: the next turn knows.
                return Ok(now);
            }
            if spec.scope == Scope::Node && lease.is_some() && standing.requests.is_empty() {
                return Ok(now);
            }
            let next = step(spec, standing, now);
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
                    return Ok(now + TimeDelta::minutes(1));
                }
            };
            let ctx = match &next {
                Step::Run(run) => Some(self.context(spec, run, fence, stop)),
                _ => None,
            };
            let mut seat = None;
            if let Some(at) = instant {
                seat = Some(turn.burst.instant().await);
                now = self.clock.now();
                if now < at {
                    return Ok(at);
                }
                if now - at >= RING || lock(&self.agenda).is_wanted_again(turn.entry.place) {
                    // More may have become due since, or somebody asks for something.
                    continue;
                }
            }
            let (record, state, adopts) = match (next, ctx) {
                (Step::Wait(at), _) => return Ok(at),
                (Step::Pass(pass), _) => {
                    let state = pass.state(standing.state.cursor);
                    (passed(spec, &pass, now), state, pass.adopts)
                }
                (Step::Refuse { request, reason }, _) => {
                    (refused(spec, &request, reason, now), standing.state.clone(), false)
                }
                (Step::Run(run), ctx) => {
                    let ctx = ctx.unwrap_or_else(|| self.context(spec, &run, fence, stop));
                    if ctx.stop_requested().is_some_and(|reason| has_run || reason != StopReason::Cancelled) {
                        // The claim was answered late, or an earlier run of this turn was told to stop: the next turn goes on.
                        return Ok(now + RING);
                    }
                    has_run = true;
                    turn.leave_crowd();
                    let (record, state) = self.run(turn, &run, &ctx, seat.take(), &standing.state).await;
                    (record, state, run.adopts)
                }
            };
            drop(seat);
            let record = RunRecord { fence, per_node: spec.scope == Scope::Node, ..record };
            self.settled(spec, &record);
            match self.store.record(lease, &record, &state).await {
                // Only this node runs it: an answer was lost, and what it recorded then was this very occurrence.
                Err(StoreError::AlreadyFinished { .. }) if lease.is_none() => {}
                recorded => recorded?,
            }
            standing.state = state;
            if let Some(answered) = record.request {
                standing.requests.retain(|request| request.id != answered);
                self.forget([answered]);
            }
            if record.status == RunStatus::Interrupted {
                return Ok(self.clock.now() + RING);
            }
            if adopts {
                standing.plan = Some(plan(spec, &standing.state));
            }
        }
    }

    fn context(&self, spec: &JobSpec, run: &Run, fence: FencingToken, stop: &StopHandle) -> JobContext {
        let occurrence = Occurrence { job: spec.name.clone(), scheduled_at: run.scheduled_at };
        JobContext::new(occurrence, run.attempt, fence, Arc::clone(&self.clock), stop.clone())
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
        let record = RunRecord {
            stretch: run.since.and_then(|since| stretch(&spec.schedule, since, run.scheduled_at)),
            attempt: run.attempt,
            finished_at,
            items: settled.items,
            request: run.request.filter(|_| !is_open),
            reason: Some(reason).filter(|reason| !reason.is_empty()),
            error: settled.error,
            details: if settled.details.is_null() { ctx.reported() } else { settled.details },
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
            StoreError::LeaseLost { .. } | StoreError::AlreadyFinished { .. } => {
                warn!(job.name = %name, %error, "{error}: another daemon goes on with it");
            }
            StoreError::Unavailable(_) => {
                error!(job.name = %name, %error, "job `{name}` cannot reach its store, next try in {} s: {error}", wait.num_seconds());
            }
        }
        self.clock.now() + wait
    }
}

/// What people ask for.
impl Inner {
    /// Asks the store, unless it has not answered the last time yet.
    fn ask(self: &Arc<Self>) {
        let mut questions = lock(&self.questions);
        while questions.try_join_next().is_some() {}
        if questions.is_empty() {
            let inner = Arc::clone(self);
            questions.spawn(async move {
                inner.ask_once().await;
                inner.look_for_late_jobs().await;
            });
        }
    }

    async fn ask_once(self: &Arc<Self>) {
        let known = lock(&self.wishes).as_ref().map(|wishes| wishes.revision);
        let failed = match self.store.wishes(known).await {
            Ok(None) => false,
            Ok(Some(wishes)) => {
                self.obey(&wishes);
                false
            }
            Err(error) => {
                // The jobs themselves tell it again and again.
                debug!(%error, "cannot ask the store what is wished for: {error}");
                true
            }
        };
        let has_failed = std::mem::replace(&mut lock(&self.watch).failed, failed);
        if failed && !has_failed {
            warn!("the store does not answer what is wished for: requests are obeyed when it does");
        }
    }

    /// Stops what was cancelled and wakes the jobs of which anything new is asked.
    fn obey(self: &Arc<Self>, wishes: &Wishes) {
        let known = {
            let mut known = lock(&self.wishes);
            if known.as_ref().is_some_and(|known| known.revision >= wishes.revision) {
                return;
            }
            known.replace(wishes.clone())
        };
        let is_first = known.is_none();
        let known = known.unwrap_or_default();
        let is_new = |request: &&Request| known.requests.iter().all(|old| old.id != request.id);
        let mut concerned = BTreeSet::new();
        for request in wishes.requests.iter().filter(is_new) {
            match request.what {
                What::Cancel { fence } => {
                    self.cancel(request, |lease| lease.map_or(!is_first, |lease| lease.fence == fence));
                }
                _ => drop(concerned.insert(&request.job)),
            }
        }
        for (job, pause) in &wishes.paused {
            if !known.paused.contains(&(job.clone(), pause.clone())) {
                concerned.insert(job);
            }
        }
        let resumed = known.paused.iter().map(|(job, _)| job);
        concerned.extend(resumed.filter(|job| wishes.paused.iter().all(|(paused, _)| paused != *job)));
        if concerned.is_empty() {
            return;
        }
        let entries: Vec<_> =
            self.entries().iter().filter(|entry| concerned.contains(&entry.name)).cloned().collect();
        for entry in entries {
            let now = self.clock.now();
            entry.remember(|memory| memory.remember_pause(wishes.pause_of(&entry.name), now));
            self.wake(&entry);
        }
    }

    /// Stops the run of the job that `request` names, if it is the one that is meant.
    fn cancel(&self, request: &Request, is_meant: impl Fn(Option<&Lease>) -> bool) {
        if let Some(running) =
            lock(&self.running).values_mut().find(|running| running.job.name == request.job)
            && running.cancelled.is_none()
            && is_meant(running.lease.as_ref())
        {
            running.cancelled = Some(request.sentence());
            running.stop.stop(StopReason::Cancelled);
            info!(job.name = %request.job, by = %request.by, "the run of job `{}` is {}", request.job, request.sentence());
        }
    }

    /// A wish to cancel this very claim may have come before its run was there to be stopped.
    fn cancel_known(&self, lease: &Lease) {
        let what = What::Cancel { fence: lease.fence };
        let known = lock(&self.wishes).as_ref().and_then(|wishes| {
            wishes.requests.iter().find(|request| request.job == lease.job && request.what == what).cloned()
        });
        if let Some(request) = known {
            self.cancel(&request, |_| true);
        }
    }

    /// What is known to be asked for, beside the cancellation of a claim.
    fn asked_for(&self, job: &str) -> Vec<Uuid> {
        let runs = |request: &&Request| request.job == job && !matches!(request.what, What::Cancel { .. });
        let wishes = lock(&self.wishes);
        let requests = wishes.iter().flat_map(|wishes| &wishes.requests);
        requests.filter(runs).map(|request| request.id).collect()
    }

    fn is_asked_for(&self, job: &str) -> bool {
        !self.asked_for(job).is_empty()
    }

    /// These requests are answered. What was asked for since is not.
    fn forget(&self, answered: impl IntoIterator<Item = Uuid>) {
        if let Some(wishes) = &mut *lock(&self.wishes) {
            for id in answered {
                wishes.requests.retain(|request| request.id != id);
            }
        }
    }

    /// Reports each job of ours that is late, once, whoever should have run it.
    async fn look_for_late_jobs(&self) {
        {
            let mut watch = lock(&self.watch);
            watch.asked = (watch.asked + 1) % LATE_EVERY;
            if watch.asked != 0 || watch.failed {
                return;
            }
        }
        let Ok(mut late) = self.store.late(self.clock.now()).await else { return };
        if !late.is_empty() {
            let entries = self.entries();
            let ours = entries.iter().filter(|entry| !entry.is_removed()).map(|entry| entry.name.as_str());
            let ours: HashSet<&str> = ours.collect();
            late.retain(|late| ours.contains(late.job.as_str()));
        }
        let mut watch = lock(&self.watch);
        let key = |late: &Late| (late.job.clone(), late.scheduled_at);
        let known = std::mem::replace(&mut watch.late, late.iter().map(key).collect());
        for late in late.iter().filter(|late| !known.contains(&key(late))) {
            error!(job.name = %late.job, scheduled_at = %late.scheduled_at, late = true, "{late}");
        }
        for (job, scheduled_at) in known.difference(&watch.late) {
            info!(job.name = %job, %scheduled_at, late = false, "job `{job}` is late no more");
        }
    }
}

impl Entry {
    fn new(place: usize, definition: Definition) -> Self {
        Self {
            name: definition.spec.name.clone(),
            place,
            definition: Mutex::new(Arc::new(definition)),
            removed: AtomicBool::new(false),
            memory: Mutex::default(),
        }
    }

    /// Most jobs have nothing to remember, and many jobs have much memory.
    fn remember<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(lock(&self.memory).get_or_insert_default())
    }

    fn definition(&self) -> Arc<Definition> {
        Arc::clone(&lock(&self.definition))
    }

    fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }
}

impl Definition {
    fn build(registry: &Registry, spec: JobSpec, params: serde_json::Value) -> Result<Self, BuildError> {
        let job = registry.build(&spec.kind, params.clone())?;
        Ok(Self { spec, params, job })
    }
}

impl Memory {
    /// A node's own memory of the pauses of its jobs: without a lease, nobody else remembers for it.
    fn remember_pause(&mut self, paused: Option<&Pause>, now: DateTime<Utc>) {
        let open = self.pauses.iter_mut().find(|pause| pause.until.is_none());
        match (open, paused) {
            (Some(open), None) => open.until = Some(now),
            (None, Some(pause)) => self.pauses.push(pause.clone()),
            (Some(open), Some(pause)) => *open = pause.clone(),
            (None, None) => {}
        }
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

/// The end of a turn, also if it is by a panic.
impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.inner.running).remove(&self.entry.place);
        {
            let mut agenda = lock(&self.inner.agenda);
            agenda.put(self.entry.place, self.next);
            if *self.is_in_crowd.get_mut() {
                agenda.leave_crowd();
            }
        }
        self.inner.arm_late();
    }
}

fn first_cursor(spec: &JobSpec, now: DateTime<Utc>) -> DateTime<Utc> {
    let now = now.trunc_subsecs(0);
    if !spec.run_at_start {
        return now;
    }
    match spec.schedule.last_until(now) {
        Ok(Some(last)) => last - TimeDelta::seconds(1),
        Ok(None) | Err(_) => now,
    }
}

fn passed(spec: &JobSpec, pass: &Pass, now: DateTime<Utc>) -> RunRecord {
    RunRecord {
        stretch: stretch(&spec.schedule, pass.from, pass.until),
        reason: Some(pass.reason.clone()),
        ..RunRecord::new(&spec.name, pass.until, pass.status, Trigger::Schedule, now)
    }
}

fn refused(spec: &JobSpec, request: &Request, reason: String, now: DateTime<Utc>) -> RunRecord {
    let (scheduled_at, trigger) = match request.what {
        What::Replay { scheduled_at } => (scheduled_at, Trigger::Replay),
        _ => (request.at.trunc_subsecs(0), Trigger::Manual),
    };
    RunRecord {
        request: Some(request.id),
        reason: Some(reason),
        ..RunRecord::new(&spec.name, scheduled_at, RunStatus::Missed, trigger, now)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here leaves a lock's value half changed when it panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
