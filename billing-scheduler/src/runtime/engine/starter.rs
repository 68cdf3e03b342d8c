//! Starts the turns of jobs that are due, or about to be.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::{runtime::Handle, task::JoinSet};

use super::{
    due_queue::Wakeup,
    scheduled_job::ScheduledJob,
    shared::{Inner, LOOKAHEAD, Phase, lock},
    start_gate::StartGate,
};

impl Inner {
    /// Starts a turn for each job that is to be looked at up to `until`.
    pub(super) fn arm(self: &Arc<Self>, now: DateTime<Utc>, until: DateTime<Utc>) {
        let looks = lock(&self.due_queue).take(now, until);
        self.start(&looks);
    }

    /// Starts the turns of these looks, which come in the order of their instants.
    fn start(self: &Arc<Self>, looks: &[Wakeup]) {
        if looks.is_empty() {
            return;
        }
        let mut cycles = lock(&self.cycles);
        while cycles.try_join_next().is_some() {}
        let jobs = self.jobs();
        for together in looks.chunk_by(|a, b| a.at == b.at) {
            let gate = if together[0].is_late {
                let gate = Arc::<StartGate>::default();
                // Also for a turn that finds, after a clock was set back, that its instant is still to come.
                gate.open();
                gate
            } else {
                self.gate_at(together[0].at, &mut cycles)
            };
            for look in together {
                let job = Arc::clone(&jobs[look.job]);
                let active = self.progress.begin_cycle();
                let cycle = Arc::clone(self).run_cycle(job, *look, Arc::clone(&gate));
                cycles.spawn(async move {
                    cycle.await;
                    drop(active);
                });
            }
        }
    }

    /// The burst of an instant that is still to come.
    fn gate_at(self: &Arc<Self>, at: DateTime<Utc>, cycles: &mut JoinSet<()>) -> Arc<StartGate> {
        let (gate, is_new) = self.progress.gate_at(at);
        if is_new {
            cycles.spawn(Arc::clone(self).await_instant(at));
        }
        gate
    }

    /// Begins a burst at its instant, or when the scheduler is drained.
    async fn await_instant(self: Arc<Self>, at: DateTime<Utc>) {
        let mut phase = self.phase.subscribe();
        loop {
            let wait = at - self.clock.now();
            // What is farther away was not so when it was armed: the clock was set.
            let Some(wait) = wait.to_std().ok().filter(|left| !left.is_zero() && wait <= LOOKAHEAD) else {
                break;
            };
            tokio::select! {
                () = self.clock.sleep(wait) => {}
                _ = phase.wait_for(|phase| *phase != Phase::Open) => break,
            }
        }
        self.progress.come(at);
    }

    /// Looks at a job now, or as soon as its turn under way ends.
    pub(super) fn wake(self: &Arc<Self>, job: &ScheduledJob) {
        lock(&self.due_queue).requeue(job.index);
        self.arm_late();
    }

    /// Starts turns of jobs whose time has passed, as far as there is room for them.
    pub(super) fn arm_late(self: &Arc<Self>) {
        if self.may_start() {
            let now = self.clock.now();
            self.arm(now, now);
        }
    }

    /// Starts the turn of a job whose instant the last tick would have armed if the job had been waiting then: the next tick
    /// may come too late for it.
    pub(super) fn arm_next(self: &Arc<Self>, place: usize) {
        if self.may_start() {
            let now = self.clock.now();
            let last_tick = lock(&self.last_tick).map_or(now, |(wall, _)| wall);
            // The clock may have been set back since.
            let look = lock(&self.due_queue).take_next(place, now, last_tick.min(now) + LOOKAHEAD);
            self.start(look.as_slice());
        }
    }

    /// A turn may end after the scheduler was drained, or be dropped together with its runtime.
    fn may_start(&self) -> bool {
        !self.is_closed() && Handle::try_current().is_ok()
    }
}
