//! The public handle of the engine: build, tick, reload, control, drain.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tracing::warn;

use super::{
    due_queue::DueQueue,
    job_list::JobList,
    scheduled_job::Definition,
    shared::{Phase, Shared, lock},
};
use crate::{
    clock::Clock,
    job::StopHandle,
    registry::{BuildError, Registry},
    runtime::{
        control::Control,
        decide::{ConfigChanges, JobSpec, config_diff::changes},
        executor::STOP_GRACE,
        queue::{Queue, QueueJob},
        store::{Lease, Store},
        store_clock::StoreClock,
        surroundings::Surroundings,
    },
};

/// Runs jobs when they are due. [`Scheduler::builder`] creates one, and starts it on request.
///
/// It has no timer itself: [`SchedulerBuilder::start`](crate::SchedulerBuilder::start) adds one, or the application calls
/// [`Scheduler::tick`] about once a second, and runs a [`LeaseRenewal`](crate::LeaseRenewal).
#[derive(Clone)]
pub struct Scheduler {
    pub(super) shared: Arc<Shared>,
}

/// The kinds of queued jobs that a process runs, and how long finished jobs are kept.
pub(crate) struct QueueKinds {
    pub(crate) kinds: Vec<QueueJob>,
    pub(crate) retention: Duration,
}

impl Default for QueueKinds {
    fn default() -> Self {
        Self { kinds: Vec::new(), retention: Queue::RETENTION }
    }
}

/// The result of [`Scheduler::drain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// The number of lease cycles and of runs of queued jobs that did not end in time and were abandoned. They run again.
    pub abandoned: usize,
}

impl Scheduler {
    /// Builds a scheduler for the jobs of `specs`, each with its parameters, from the kinds in `registry`. It follows the clock of
    /// `store` if that has one, and otherwise `clock`, the clock of this host: see [`Scheduler::clock`].
    ///
    /// # Errors
    /// A job names an unknown kind, or its parameters are invalid.
    pub fn build(
        registry: &Registry,
        specs: impl IntoIterator<Item = (JobSpec, serde_json::Value)>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, BuildError> {
        let definitions = specs.into_iter().map(|(spec, params)| Definition::build(registry, spec, params));
        Self::with_definitions(registry, definitions, QueueKinds::default(), store, clock)
    }

    pub(super) fn with_definitions<E>(
        registry: &Registry,
        definitions: impl Iterator<Item = Result<Definition, E>>,
        queue: QueueKinds,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, E> {
        let (mut due_queue, mut jobs) = (DueQueue::default(), JobList::default());
        for definition in definitions {
            jobs.add(due_queue.add(), definition?);
        }
        let clock = Arc::new(StoreClock::new(clock));
        let surroundings = Arc::new(Surroundings::new(registry));
        let queue = Arc::clone(&store).queue().map(|store| {
            let QueueKinds { kinds, retention } = queue;
            Arc::new(Queue::new(store, clock.clone(), Arc::clone(&surroundings), kinds, retention))
        });
        let shared = Shared {
            store,
            clock,
            surroundings,
            queue,
            kinds: OnceLock::new(),
            jobs: RwLock::new(jobs),
            reloading: Mutex::default(),
            due_queue: Mutex::new(due_queue),
            phase: watch::Sender::new(Phase::Open),
            cycles: Mutex::default(),
            polls: Mutex::default(),
            running: Mutex::default(),
            control_state: Mutex::default(),
            poll_state: Mutex::default(),
            progress: Arc::default(),
            ahead: Mutex::default(),
            last_tick: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Starts a lease cycle for each job that is due before the next tick; each run starts at its exact instant. Polls the store
    /// for control requests and for the time; jobs are started once the first poll has ended. Never blocks.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn tick(&self) {
        if self.shared.is_closed() {
            return;
        }
        if self.shared.has_started() {
            self.shared.arm_due();
        }
        self.shared.poll();
    }

    /// Polls the store only at every `ticks`th tick while no run is in progress; at every tick by default. A control request then
    /// waits for up to that many seconds, and an idle process sends that many times fewer queries. While a run is in progress, or
    /// after a failed poll, each tick polls.
    pub fn poll_idle_every(&self, ticks: u32) {
        lock(&self.shared.poll_state).idle_ticks = ticks;
    }

    /// Returns the clock that the schedules follow: the host's, corrected by the store's.
    #[must_use]
    pub fn clock(&self) -> Arc<StoreClock> {
        Arc::clone(&self.shared.clock)
    }

    /// Replaces the configuration; returns what has changed. Runs in progress keep the old one, and a removed job is not run
    /// again. After an edit of a schedule, a scheduled time of the old schedule that passed without a run is still run, and
    /// times of the new schedule that passed before the edit are not.
    ///
    /// A job is built again if its kind or its parameters changed, or if `rebuild` returns true; otherwise it keeps its state.
    ///
    /// # Errors
    /// A job cannot be built. Nothing has changed then.
    pub fn reload(
        &self,
        registry: &Registry,
        specs: impl IntoIterator<Item = (JobSpec, serde_json::Value)>,
        rebuild: impl Fn(&JobSpec) -> bool,
    ) -> Result<ConfigChanges, BuildError> {
        let specs: Vec<_> = specs.into_iter().collect();
        let shared = &self.shared;
        // Building validates parameters and may take long, so it comes before the locks that a tick needs.
        let _one_at_a_time = lock(&shared.reloading);
        let present: Vec<_> = shared.jobs().iter().filter(|job| !job.is_removed()).cloned().collect();
        let definitions: HashMap<_, _> = present.iter().map(|job| (&*job.name, job.definition())).collect();
        let before = definitions.values().map(|definition| (&definition.spec, definition.params()));
        let changes = changes(before, specs.iter().map(|(spec, params)| (spec, params)));
        let mut made = Vec::new();
        for (spec, params) in specs {
            let old = definitions.get(spec.name.as_str());
            let old =
                old.filter(|old| old.spec.kind == spec.kind && *old.params() == params && !rebuild(&spec));
            made.push(match old {
                Some(old) => Definition::new(spec, params, Arc::clone(&old.job)),
                None => Definition::build(registry, spec, params)?,
            });
        }
        let mut jobs = shared.jobs.write().unwrap_or_else(PoisonError::into_inner);
        shared.surroundings.set_mask(registry.mask());
        // The changes are sorted by name.
        let is_removed = |name: &str| changes.removed.binary_search_by(|job| job.as_str().cmp(name)).is_ok();
        for job in present.iter().filter(|job| is_removed(&job.name)) {
            job.remove(shared.clock.now());
            lock(&shared.due_queue).requeue(job.index());
        }
        for definition in made {
            let is_changed =
                changes.changed.binary_search_by(|change| change.job.cmp(&definition.spec.name)).is_ok();
            shared.put(&mut jobs, definition, is_changed);
        }
        Ok(changes)
    }

    /// Returns a handle that controls the jobs of every process on the same store. Its requests are signed with `by`.
    #[must_use]
    pub fn control(&self, by: impl Into<String>) -> Control {
        let shared = Arc::clone(&self.shared);
        Control::new(Arc::clone(&shared.store), shared.clock.clone(), by)
            .with_known_jobs(move |name| shared.job(name).is_some())
    }

    /// Extends the lease of every lease cycle in progress, and the claim of every queued job that this process runs, and returns the
    /// shortest lifetime among them. Call it about three times per
    /// lifetime of a lease, from a thread that no job can block, as [`LeaseRenewal`](crate::LeaseRenewal) does.
    pub async fn renew_leases(&self) -> Option<Duration> {
        let held: Vec<(Lease, StopHandle)> = lock(&self.shared.running)
            .values()
            .filter_map(|running| Some((running.lease.clone()?, running.stop.clone())))
            .collect();
        let shortest = held.iter().map(|(lease, _)| lease.ttl).min();
        for (lease, stop) in held {
            self.shared.renew(&lease, &stop).await;
        }
        let claims = match &self.shared.queue {
            Some(queue) => queue.renew_claims().await,
            None => None,
        };
        [shortest, claims].into_iter().flatten().min()
    }

    /// Waits until every lease cycle has ended or waits for an instant still to come. For tests.
    pub async fn idle(&self) {
        loop {
            let mut polls = std::mem::take(&mut *lock(&self.shared.polls));
            while polls.join_next().await.is_some() {}
            self.shared.progress.idle(|| self.shared.clock.now()).await;
            if lock(&self.shared.polls).is_empty() {
                return;
            }
        }
    }

    /// Returns when a job wakes up next, or a run starts; `None` without jobs.
    pub(crate) fn next_wakeup(&self) -> Option<DateTime<Utc>> {
        let queued = lock(&self.shared.due_queue).first();
        [queued, self.shared.progress.first()].into_iter().flatten().min()
    }

    /// Starts nothing new, and waits until the runs in progress have ended. After `timeout`, or at [`Scheduler::interrupt`],
    /// they are requested to stop; those that have not stopped after another [`STOP_GRACE`] are abandoned.
    pub async fn drain(&self, timeout: Duration) -> DrainReport {
        let shared = &self.shared;
        shared.phase.send_if_modified(|phase| {
            let is_open = *phase == Phase::Open;
            if is_open {
                *phase = Phase::Draining;
            }
            is_open
        });
        let mut cycles = std::mem::take(&mut *lock(&shared.cycles));
        // A poll is not cancelled either: its database connection would be lost.
        let mut polls = std::mem::take(&mut *lock(&shared.polls));
        let mut phase = shared.phase.subscribe();
        {
            let mut all_done = std::pin::pin!(async {
                while cycles.join_next().await.is_some() {}
                while polls.join_next().await.is_some() {}
            });
            let is_done = tokio::select! {
                biased;
                () = &mut all_done => true,
                // The sender lives as long as this scheduler.
                _ = phase.wait_for(|phase| *phase == Phase::Interrupting) => false,
                () = shared.clock.sleep(timeout) => {
                    let runs = shared.interrupt();
                    warn!(runs, "{runs} runs did not end within {} s and are requested to stop", timeout.as_secs());
                    false
                }
            };
            if !is_done {
                tokio::select! {
                    biased;
                    () = &mut all_done => {}
                    () = shared.clock.sleep(STOP_GRACE) => {}
                }
            }
        }
        let abandoned = cycles.len();
        cycles.abort_all();
        DrainReport { abandoned }
    }

    /// Starts nothing new, and requests every run in progress to stop. A job stops where its work can be continued later, such as
    /// between two batches.
    pub fn interrupt(&self) {
        self.shared.interrupt();
    }
}
