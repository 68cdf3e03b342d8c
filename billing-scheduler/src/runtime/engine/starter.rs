//! Starts the turns of jobs that are due, or about to be.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::{runtime::Handle, task::JoinSet};

use super::{
    due_queue::Look,
    scheduled_job::Entry,
    shared::{AHEAD, Inner, Phase, lock},
    start_gate::Burst,
};

impl Inner {
    /// Starts a turn for each job that is to be looked at up to `until`.
    pub(super) fn arm(self: &Arc<Self>, now: DateTime<Utc>, until: DateTime<Utc>) {
        let looks = lock(&self.agenda).take(now, until);
        self.start(&looks);
    }

    /// Starts the turns of these looks, which come in the order of their instants.
    fn start(self: &Arc<Self>, looks: &[Look]) {
        if looks.is_empty() {
            return;
        }
        let mut turns = lock(&self.turns);
        while turns.try_join_next().is_some() {}
        let entries = self.entries();
        for together in looks.chunk_by(|a, b| a.at == b.at) {
            let burst = if together[0].is_late {
                let burst = Arc::<Burst>::default();
                // Also for a turn that finds, after a clock was set back, that its instant is still to come.
                burst.begin();
                burst
            } else {
                self.burst_at(together[0].at, &mut turns)
            };
            for look in together {
                let entry = Arc::clone(&entries[look.job]);
                let active = self.progress.begin_turn();
                let turn = Arc::clone(self).look(entry, *look, Arc::clone(&burst));
                turns.spawn(async move {
                    turn.await;
                    drop(active);
                });
            }
        }
    }

    /// The burst of an instant that is still to come.
    fn burst_at(self: &Arc<Self>, at: DateTime<Utc>, turns: &mut JoinSet<()>) -> Arc<Burst> {
        let (burst, is_new) = self.progress.burst_at(at);
        if is_new {
            turns.spawn(Arc::clone(self).await_instant(at));
        }
        burst
    }

    /// Begins a burst at its instant, or when the scheduler is drained.
    async fn await_instant(self: Arc<Self>, at: DateTime<Utc>) {
        let mut phase = self.phase.subscribe();
        loop {
            let wait = at - self.clock.now();
            // What is farther away was not so when it was armed: the clock was set.
            let Some(wait) = wait.to_std().ok().filter(|left| !left.is_zero() && wait <= AHEAD) else {
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
    pub(super) fn wake(self: &Arc<Self>, entry: &Entry) {
        lock(&self.agenda).look_again(entry.place);
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
            let look = lock(&self.agenda).take_next(place, now, last_tick.min(now) + AHEAD);
            self.start(look.as_slice());
        }
    }

    /// A turn may end after the scheduler was drained, or be dropped together with its runtime.
    fn may_start(&self) -> bool {
        !self.is_closed() && Handle::try_current().is_ok()
    }
}
