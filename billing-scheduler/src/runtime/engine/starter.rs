//! Starts the lease cycles of jobs that are due, or about to be.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::{runtime::Handle, task::JoinSet};

use super::{
    due_queue::Wakeup,
    lease_cycle::LeaseCycle,
    scheduled_job::ScheduledJob,
    shared::{LOOKAHEAD, Phase, Shared, lock},
    start_gate::StartGate,
};
use crate::clock::Clock;

impl Shared {
    /// Starts a lease cycle for each job that is due before the next tick.
    pub(super) fn arm_due(self: &Arc<Self>) {
        let now = self.clock.now();
        if self.clock_was_set_back(now) {
            lock(&self.due_queue).requeue_all();
        }
        self.arm(now, now + LOOKAHEAD);
    }

    /// Starts a lease cycle for each job whose wake-up is not after `until`.
    fn arm(self: &Arc<Self>, now: DateTime<Utc>, until: DateTime<Utc>) {
        let wakeups = lock(&self.due_queue).take(now, until);
        self.start(&wakeups);
    }

    /// Starts the lease cycles of `wakeups`, which are sorted by time.
    fn start(self: &Arc<Self>, wakeups: &[Wakeup]) {
        if wakeups.is_empty() {
            return;
        }
        let mut cycles = lock(&self.cycles);
        while cycles.try_join_next().is_some() {}
        let jobs = self.jobs();
        for together in wakeups.chunk_by(|a, b| a.at == b.at) {
            let gate = if together[0].is_late {
                let gate = Arc::<StartGate>::default();
                // Also for a cycle that finds, after a clock was set back, that its instant is still to come.
                gate.open();
                gate
            } else {
                self.gate_at(together[0].at, &mut cycles)
            };
            for wakeup in together {
                let (shared, job, gate) =
                    (Arc::clone(self), Arc::clone(&jobs[wakeup.job]), Arc::clone(&gate));
                let (wakeup, active) = (*wakeup, self.progress.begin_cycle());
                cycles.spawn(async move {
                    LeaseCycle::new(shared, job, wakeup, gate).run().await;
                    drop(active);
                });
            }
        }
    }

    /// Returns the gate of an instant still to come.
    fn gate_at(self: &Arc<Self>, at: DateTime<Utc>, cycles: &mut JoinSet<()>) -> Arc<StartGate> {
        let (gate, is_new) = self.progress.gate_at(at);
        if is_new {
            cycles.spawn(Arc::clone(self).open_gate_at(at));
        }
        gate
    }

    /// Opens the gate of an instant when the instant comes, or when the scheduler is drained.
    async fn open_gate_at(self: Arc<Self>, at: DateTime<Utc>) {
        let mut phase = self.phase.subscribe();
        loop {
            let wait = at - self.clock.now();
            // An instant farther away was armed before the clock was set.
            let Some(wait) = wait.to_std().ok().filter(|left| !left.is_zero() && wait <= LOOKAHEAD) else {
                break;
            };
            tokio::select! {
                () = self.clock.sleep(wait) => {}
                _ = phase.wait_for(|phase| *phase != Phase::Open) => break,
            }
        }
        self.progress.open_gate(at);
    }

    /// Wakes a job immediately, or as soon as its running lease cycle ends.
    pub(super) fn wake(self: &Arc<Self>, job: &ScheduledJob) {
        lock(&self.due_queue).requeue(job.index());
        self.arm_late();
    }

    /// Starts late lease cycles, as far as there are places for them.
    pub(super) fn arm_late(self: &Arc<Self>) {
        if self.may_start() {
            let now = self.clock.now();
            self.arm(now, now);
        }
    }

    /// Starts the lease cycle of a job that the last tick would have started if its wake-up had been known then: the next tick may
    /// come too late.
    pub(super) fn arm_next(self: &Arc<Self>, job: usize) {
        if self.may_start() {
            let now = self.clock.now();
            let last_tick = lock(&self.last_tick).map_or(now, |(wall, _)| wall);
            // The clock may have been set back since.
            let wakeup = lock(&self.due_queue).take_next(job, now, last_tick.min(now) + LOOKAHEAD);
            self.start(wakeup.as_slice());
        }
    }

    /// Whether a lease cycle that ends may start another one. It may not after a drain, outside of a runtime, or in a scheduler
    /// that nothing ticks.
    fn may_start(&self) -> bool {
        !self.is_closed() && self.has_started() && Handle::try_current().is_ok()
    }

    /// Whether ticks start lease cycles, which they do from the end of the first poll on.
    pub(super) fn has_started(&self) -> bool {
        lock(&self.last_tick).is_some()
    }
}
