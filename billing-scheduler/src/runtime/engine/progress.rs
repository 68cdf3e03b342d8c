//! Counts the lease cycles that make progress and those that only wait for an instant still to come.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;

use super::{
    shared::{LOOKAHEAD, lock},
    start_gate::StartGate,
};

#[derive(Default)]
pub(super) struct Progress {
    counts: Mutex<Counts>,
    changed: Notify,
}

#[derive(Default)]
struct Counts {
    /// Lease cycles that do not wait for an instant.
    active: usize,
    upcoming: BTreeMap<DateTime<Utc>, Upcoming>,
}

/// An instant still to come.
struct Upcoming {
    gate: Arc<StartGate>,
    /// Lease cycles that wait at the gate.
    waiting: usize,
}

/// Counts one lease cycle until it is dropped.
pub(super) struct ActiveCycle(Arc<Progress>);

impl Progress {
    pub(super) fn begin_cycle(self: &Arc<Self>) -> ActiveCycle {
        lock(&self.counts).active += 1;
        ActiveCycle(Arc::clone(self))
    }

    /// Returns the gate of an instant, and whether it is new. All lease cycles of the instant share it.
    pub(super) fn gate_at(&self, at: DateTime<Utc>) -> (Arc<StartGate>, bool) {
        let mut counts = lock(&self.counts);
        let mut is_new = false;
        let upcoming = counts.upcoming.entry(at).or_insert_with(|| {
            is_new = true;
            Upcoming { gate: Arc::default(), waiting: 0 }
        });
        (Arc::clone(&upcoming.gate), is_new)
    }

    /// Counts a lease cycle as waiting at `gate`, unless the gate's instant has come.
    pub(super) fn wait_for(&self, at: DateTime<Utc>, gate: &Arc<StartGate>) {
        let Counts { active, upcoming } = &mut *lock(&self.counts);
        if let Some(upcoming) = upcoming.get_mut(&at).filter(|upcoming| Arc::ptr_eq(&upcoming.gate, gate)) {
            upcoming.waiting += 1;
            *active = active.saturating_sub(1);
            self.changed.notify_waiters();
        }
    }

    /// Opens the gate of an instant that has come.
    pub(super) fn open_gate(&self, at: DateTime<Utc>) {
        let mut counts = lock(&self.counts);
        if let Some(Upcoming { gate, waiting }) = counts.upcoming.remove(&at) {
            counts.active += waiting;
            gate.open();
        }
        self.changed.notify_waiters();
    }

    /// Returns the earliest instant that a lease cycle waits for.
    pub(super) fn first(&self) -> Option<DateTime<Utc>> {
        lock(&self.counts).upcoming.keys().next().copied()
    }

    /// Returns when no lease cycle makes progress, by the clock `now`.
    pub(super) async fn idle(&self, now: impl Fn() -> DateTime<Utc>) {
        loop {
            let changed = self.changed.notified();
            {
                let counts = lock(&self.counts);
                let now = now();
                // An instant farther away was armed before the clock was set; its lease cycles are about to end.
                let is_upcoming = |at: &DateTime<Utc>| *at > now && *at - now <= LOOKAHEAD;
                if counts.active == 0 && counts.upcoming.keys().all(is_upcoming) {
                    return;
                }
            }
            changed.await;
        }
    }
}

impl Drop for ActiveCycle {
    fn drop(&mut self) {
        let mut counts = lock(&self.0.counts);
        // A cycle that is aborted while it waits is not counted as active.
        counts.active = counts.active.saturating_sub(1);
        self.0.changed.notify_waiters();
    }
}
