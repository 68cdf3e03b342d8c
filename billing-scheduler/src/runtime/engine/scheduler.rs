//! Turns of jobs: acquire, due, run, record, ask again, release. Catch-up, restart and take-over are this one path.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::Ordering},
    time::Duration,
};

use tokio::sync::watch;
use tracing::warn;

use super::{
    due_queue::DueQueue,
    executor::STOP_GRACE,
    scheduled_job::{Definition, ScheduledJob},
    shared::{Inner, LOOKAHEAD, Phase, lock},
};
use crate::{
    clock::Clock,
    job::{StopHandle, StopReason},
    registry::{BuildError, Registry},
    runtime::{
        control::Control,
        decide::{Changes, JobSpec, config_diff::changes},
        middleware::Middleware,
        spans::Tracing,
        store::{Lease, Store, StoreError},
    },
};

/// Runs jobs when they are due. It does not own the time: something calls [`Scheduler::tick`] about once a second, and
/// something else, on a thread of its own, [`Scheduler::renew_leases`].
#[derive(Clone)]
pub struct Scheduler {
    inner: Arc<Inner>,
}

/// What became of the runs in progress when the scheduler was drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Turns that did not end in time and were abandoned. Their occurrences run again.
    pub abandoned: usize,
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
        let mut due_queue = DueQueue::default();
        let jobs = specs
            .into_iter()
            .map(|(spec, params)| {
                let definition = Definition::build(registry, spec, params)?;
                Ok(Arc::new(ScheduledJob::new(due_queue.add(), definition)))
            })
            .collect::<Result<Vec<_>, BuildError>>()?;
        let inner = Inner {
            store,
            clock,
            middleware: std::iter::once(Arc::new(Tracing) as Arc<dyn Middleware>)
                .chain(registry.middleware().iter().cloned())
                .collect(),
            mask: Mutex::new(registry.mask().clone()),
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
            lock(&self.inner.due_queue).requeue_all();
        }
        self.inner.arm(now, now + LOOKAHEAD);
        self.inner.poll();
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
        // Jobs are made, which validates their parameters, before any lock that a tick needs.
        let _one_at_a_time = lock(&inner.reloading);
        let present: Vec<_> = inner.jobs().iter().filter(|job| !job.is_removed()).cloned().collect();
        let definitions: Vec<_> = present.iter().map(|job| job.definition()).collect();
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
        let mut jobs = inner.jobs.write().unwrap_or_else(PoisonError::into_inner);
        lock(&inner.mask).clone_from(registry.mask());
        for job in present.iter().filter(|job| changes.removed.contains(&job.name)) {
            job.removed.store(true, Ordering::SeqCst);
            lock(&inner.due_queue).requeue(job.index);
        }
        for definition in made {
            let is_changed = changes.changed.iter().any(|change| change.job == definition.spec.name);
            match jobs.iter().find(|job| job.name == definition.spec.name) {
                Some(job) => {
                    let was_removed = job.removed.swap(false, Ordering::SeqCst);
                    *lock(&job.definition) = Arc::new(definition);
                    if is_changed || was_removed {
                        lock(&inner.due_queue).requeue(job.index);
                    }
                }
                None => jobs.push(Arc::new(ScheduledJob::new(lock(&inner.due_queue).add(), definition))),
            }
        }
        Ok(changes)
    }

    /// Controls these jobs, and those of every other process on the same store, in the name of `by`.
    #[must_use]
    pub fn control(&self, by: impl Into<String>) -> Control {
        let inner = Arc::clone(&self.inner);
        Control::new(Arc::clone(&inner.store), Arc::clone(&inner.clock), by)
            .with_known_jobs(move |name| inner.jobs().iter().any(|job| job.name == name && !job.is_removed()))
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
                    warn!(job.name = %lease.job, fencing_token = %lease.fencing_token, "job `{}` lost its lease: it stops", lease.job);
                }
                Err(error) => {
                    warn!(job.name = %lease.job, %error, "could not renew the lease of job `{}`: {error}", lease.job);
                }
            }
        }
    }

    /// Waits until every turn has ended or waits for an instant that is still to come: for tests and one-off runs.
    pub async fn idle(&self) {
        loop {
            let mut polls = std::mem::take(&mut *lock(&self.inner.polls));
            while polls.join_next().await.is_some() {}
            self.inner.progress.none(|| self.inner.clock.now()).await;
            if lock(&self.inner.polls).is_empty() {
                return;
            }
        }
    }

    /// Starts nothing new, and waits until the runs in progress have ended. After `timeout`, or at [`Scheduler::interrupt`],
    /// they are asked to stop, and those that have not after another [`STOP_GRACE`] are abandoned.
    pub async fn drain(&self, timeout: Duration) -> DrainReport {
        let inner = &self.inner;
        inner.phase.send_if_modified(|phase| {
            let is_open = *phase == Phase::Open;
            if is_open {
                *phase = Phase::Draining;
            }
            is_open
        });
        let mut cycles = std::mem::take(&mut *lock(&inner.cycles));
        // A question is not cancelled either: the connection that it is asked on would be lost with it.
        let mut polls = std::mem::take(&mut *lock(&inner.polls));
        let mut phase = inner.phase.subscribe();
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
                () = inner.clock.sleep(timeout) => {
                    let runs = inner.interrupt();
                    warn!(runs, "{runs} runs did not end within {} s and are asked to stop", timeout.as_secs());
                    false
                }
            };
            if !is_done {
                tokio::select! {
                    biased;
                    () = &mut all_done => {}
                    () = inner.clock.sleep(STOP_GRACE) => {}
                }
            }
        }
        let abandoned = cycles.len();
        cycles.abort_all();
        DrainReport { abandoned }
    }

    /// Starts nothing new, and asks every run in progress to stop. A job stops where its work can be continued later, such as
    /// between two batches.
    pub fn interrupt(&self) {
        self.inner.interrupt();
    }
}
