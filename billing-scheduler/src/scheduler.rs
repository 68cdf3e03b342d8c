//! Turns of jobs: acquire, due, run, record, ask again, release. Catch-up, restart and take-over are this one path.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use tokio::task::JoinSet;
use tracing::{debug, error, warn};

use crate::{
    BuildError, Claim, Clock, Due, FencingToken, Job, JobContext, JobError, JobSpec, JobState, Lease,
    Middleware, Next, Occurrence, Outcome, Registry, RunRecord, RunStatus, Scope, Skipped, StopHandle,
    StopReason, Store, StoreError, Trigger, due,
    guard::{Guarded, Leftover, catch, contained},
    settle,
};

/// A tick arms everything that is due before the next one.
const RING: TimeDelta = TimeDelta::seconds(1);
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
    entries: Vec<Entry>,
    closed: AtomicBool,
    turns: Mutex<JoinSet<()>>,
    /// In the order of the jobs, so that a simulation repeats itself.
    running: Mutex<BTreeMap<usize, Running>>,
    /// What the wall clock and the monotonic one showed at the last tick.
    last_tick: Mutex<Option<(DateTime<Utc>, Duration)>>,
}

struct Entry {
    spec: JobSpec,
    job: Arc<dyn Job>,
    look: Mutex<Look>,
}

/// When to look at a job next, and what is remembered between two looks.
#[derive(Default)]
struct Look {
    /// A turn is armed or under way.
    busy: bool,
    /// `None`: at once.
    at: Option<DateTime<Utc>>,
    /// How many times in a row the store failed.
    store_failures: u32,
    /// Where the schedule stands, for a job that each node runs by itself.
    local: Option<JobState>,
    /// A run that was given up and may still be there.
    leftover: Option<Leftover>,
}

struct Running {
    stop: StopHandle,
    lease: Option<Lease>,
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
        let entries = specs
            .into_iter()
            .map(|(spec, params)| {
                let job = registry.build(&spec.kind, params)?;
                Ok(Entry { spec, job, look: Mutex::default() })
            })
            .collect::<Result<Vec<_>, BuildError>>()?;
        let inner = Inner {
            store,
            clock,
            middleware: registry.middleware(),
            entries,
            closed: AtomicBool::new(false),
            turns: Mutex::default(),
            running: Mutex::default(),
            last_tick: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Starts a turn for each job that is due before the next tick; each fires at its exact instant. Never waits.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn tick(&self) {
        if self.inner.closed.load(Ordering::SeqCst) {
            return;
        }
        let now = self.inner.clock.now();
        let set_back = self.inner.clock_was_set_back(now);
        let mut turns = lock(&self.inner.turns);
        while turns.try_join_next().is_some() {}
        for (index, entry) in self.inner.entries.iter().enumerate() {
            let mut look = lock(&entry.look);
            if set_back {
                look.at = None;
            }
            if look.busy || look.at.is_some_and(|at| at > now + RING) {
                continue;
            }
            look.busy = true;
            let at = look.at.unwrap_or(now);
            turns.spawn(Arc::clone(&self.inner).armed_turn(index, at));
        }
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
            let mut turns = std::mem::take(&mut *lock(&self.inner.turns));
            if turns.is_empty() {
                return;
            }
            while turns.join_next().await.is_some() {}
        }
    }

    /// Starts nothing new, asks every run to stop, and waits for at most `grace` until they did.
    pub async fn drain(&self, grace: Duration) -> DrainReport {
        self.inner.closed.store(true, Ordering::SeqCst);
        for running in lock(&self.inner.running).values() {
            running.stop.stop(StopReason::Drain);
        }
        let mut turns = std::mem::take(&mut *lock(&self.inner.turns));
        let all_done = async { while turns.join_next().await.is_some() {} };
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

    async fn armed_turn(self: Arc<Self>, index: usize, at: DateTime<Utc>) {
        // Whatever happens in here, the job is looked at again.
        let mut look_again = LookAgain { inner: &self, index, at: self.clock.now() + RING };
        if let Ok(wait) = (at - self.clock.now()).to_std() {
            self.clock.sleep(wait).await;
        }
        if !self.closed.load(Ordering::SeqCst) {
            look_again.at = self.turn(index).await;
            self.wait_for_leftover(index).await;
        }
    }

    /// Waits for the end of a run that was given up. Its lease is free for other processes meanwhile, but in this one the job
    /// stays as it is: one that never gives its threads back would take them all, one run after the other.
    async fn wait_for_leftover(&self, index: usize) {
        let entry = &self.entries[index];
        let Some(leftover) = lock(&entry.look).leftover.take() else { return };
        let name = &entry.spec.name;
        let mut ended = pin!(leftover.ended());
        tokio::select! {
            biased;
            () = &mut ended => {}
            () = self.clock.sleep(Duration::from_secs(1)) => {
                error!(job.name = %name, "job `{name}` exceeded its timeout and does not stop: it will not run here until it does");
                ended.await;
                warn!(job.name = %name, "job `{name}` has stopped at last, and runs again");
            }
        }
    }

    /// One turn of one job; returns when to look at it next.
    async fn turn(&self, index: usize) -> DateTime<Utc> {
        let entry = &self.entries[index];
        let spec = &entry.spec;
        let first_cursor = first_cursor(spec, self.clock.now());
        let stop = StopHandle::new();
        let lease = match spec.scope {
            Scope::Node => None,
            Scope::Cluster => {
                let sent = self.clock.monotonic();
                match self.store.acquire(&spec.name, first_cursor).await {
                    Ok(Claim::Held(lease)) => {
                        stop.trust_lease_until(lease.trusted_until(sent));
                        Some(lease)
                    }
                    Ok(Claim::Busy { holder }) => {
                        debug!(job.name = %spec.name, %holder, "job `{}` is run by {holder}", spec.name);
                        return self.clock.now() + RING;
                    }
                    Err(error) => return self.store_failed(entry, &error),
                }
            }
        };
        let mut state = match &lease {
            Some(lease) => lease.state.clone(),
            None => lock(&entry.look).local.take().unwrap_or_else(|| JobState::at(first_cursor)),
        };
        lock(&self.running).insert(index, Running { stop: stop.clone(), lease: lease.clone() });
        let look_at = self.run_what_is_due(entry, lease.as_ref(), &stop, &mut state).await;
        lock(&self.running).remove(&index);
        let look_at = match look_at {
            Ok(at) => {
                lock(&entry.look).store_failures = 0;
                at
            }
            Err(error) => self.store_failed(entry, &error),
        };
        match &lease {
            None => lock(&entry.look).local = Some(state),
            Some(lease) => {
                if let Err(error) = self.store.release(lease).await {
                    warn!(job.name = %spec.name, %error, "could not release the lease of job `{}`: {error}", spec.name);
                }
            }
        }
        look_at
    }

    async fn run_what_is_due(
        &self,
        entry: &Entry,
        lease: Option<&Lease>,
        stop: &StopHandle,
        state: &mut JobState,
    ) -> Result<DateTime<Utc>, StoreError> {
        let spec = &entry.spec;
        loop {
            let now = self.clock.now();
            if self.closed.load(Ordering::SeqCst) {
                return Ok(now + RING);
            }
            let decision = match due(spec, state, now) {
                Ok(decision) => decision,
                Err(error) => {
                    error!(job.name = %spec.name, %error, "job `{}` is not scheduled: {error}", spec.name);
                    return Ok(now + TimeDelta::minutes(1));
                }
            };
            let fence = lease.map_or(FencingToken(0), |lease| lease.fence);
            let (record, next) = match decision {
                Due::Later(at) => return Ok(at),
                Due::Never => return Ok(now + TimeDelta::days(1)),
                Due::Skip(skip) => (skipped(spec, fence, &skip, now), JobState::at(skip.until)),
                Due::Now { scheduled_at, attempt, coalesced_from } => {
                    let occurrence = Occurrence { job: spec.name.clone(), scheduled_at };
                    let ctx =
                        JobContext::new(occurrence, attempt, fence, Arc::clone(&self.clock), stop.clone());
                    if ctx.stop_requested().is_some() {
                        // The claim was answered late, or an earlier run of this turn was told to stop: the next turn goes on.
                        return Ok(now + RING);
                    }
                    let (id, started_at) = (ctx.run_id, now);
                    let result = self.execute(entry, &ctx).await;
                    let finished_at = self.clock.now();
                    let settled = settle(spec, state, scheduled_at, attempt, result, finished_at);
                    let record = RunRecord {
                        id,
                        job: spec.name.clone(),
                        per_node: spec.scope == Scope::Node,
                        scheduled_at,
                        status: settled.status,
                        trigger: Trigger::Schedule,
                        attempt,
                        fence,
                        started_at,
                        finished_at,
                        items: settled.items,
                        reason: coalesced_from
                            .map(|from| format!("stands for every scheduled time since {from}")),
                        error: settled.error,
                        details: if settled.details.is_null() { ctx.reported() } else { settled.details },
                    };
                    (record, settled.state)
                }
            };
            self.settled(spec, &record);
            match self.store.record(lease, &record, &next).await {
                // Only this node runs it: an answer was lost, and what it recorded then was this very occurrence.
                Err(StoreError::AlreadyFinished { .. }) if lease.is_none() => {}
                recorded => recorded?,
            }
            *state = next;
            if record.status == RunStatus::Interrupted {
                return Ok(self.clock.now() + RING);
            }
        }
    }

    async fn execute(&self, entry: &Entry, ctx: &JobContext) -> Result<Outcome, JobError> {
        let guarded = Guarded::new(Arc::clone(&entry.job), entry.spec.timeout);
        let result = contained(Next::through(&self.middleware, &guarded).run(ctx)).await;
        lock(&entry.look).leftover = guarded.into_leftover();
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
        let name = &entry.spec.name;
        let mut look = lock(&entry.look);
        let wait = (RING * 2_i32.pow(look.store_failures.min(5))).min(MAX_STORE_BACKOFF);
        look.store_failures += 1;
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

/// Sets the next look at a job when its turn ends, also if that ends by a panic.
struct LookAgain<'a> {
    inner: &'a Inner,
    index: usize,
    at: DateTime<Utc>,
}

impl Drop for LookAgain<'_> {
    fn drop(&mut self) {
        lock(&self.inner.running).remove(&self.index);
        let mut look = lock(&self.inner.entries[self.index].look);
        look.busy = false;
        look.at = Some(self.at);
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

fn skipped(spec: &JobSpec, fence: FencingToken, skip: &Skipped, now: DateTime<Utc>) -> RunRecord {
    RunRecord {
        id: uuid::Uuid::now_v7(),
        job: spec.name.clone(),
        per_node: spec.scope == Scope::Node,
        scheduled_at: skip.until,
        status: RunStatus::Skipped,
        trigger: Trigger::Schedule,
        attempt: 0,
        fence,
        started_at: now,
        finished_at: now,
        items: 0,
        reason: Some(skip.to_string()),
        error: None,
        details: serde_json::json!({ "from": skip.from, "until": skip.until, "count": skip.count }),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here leaves a lock's value half changed when it panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
