//! How many turns make progress, and which only wait for an instant that is still to come.

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
    /// Turns that do not wait for an instant.
    active: usize,
    coming: BTreeMap<DateTime<Utc>, Coming>,
}

struct Coming {
    gate: Arc<StartGate>,
    /// Turns that wait for it.
    waiting: usize,
}

/// A turn, until it is dropped.
pub(super) struct Active(Arc<Progress>);

impl Progress {
    pub(super) fn begin_cycle(self: &Arc<Self>) -> Active {
        lock(&self.counts).active += 1;
        Active(Arc::clone(self))
    }

    /// The burst of an instant, and whether it is new: one for all turns of the instant, whenever they were armed.
    pub(super) fn gate_at(&self, at: DateTime<Utc>) -> (Arc<StartGate>, bool) {
        let mut counts = lock(&self.counts);
        let mut is_new = false;
        let coming = counts.coming.entry(at).or_insert_with(|| {
            is_new = true;
            Coming { gate: Arc::default(), waiting: 0 }
        });
        (Arc::clone(&coming.gate), is_new)
    }

    /// A turn waits for the instant of `burst` from here on, unless that has come.
    pub(super) fn wait_for(&self, at: DateTime<Utc>, gate: &Arc<StartGate>) {
        let Counts { active, coming } = &mut *lock(&self.counts);
        if let Some(coming) = coming.get_mut(&at).filter(|coming| Arc::ptr_eq(&coming.gate, gate)) {
            coming.waiting += 1;
            *active = active.saturating_sub(1);
            self.changed.notify_waiters();
        }
    }

    /// The instant has come: whatever waited for it goes on.
    pub(super) fn come(&self, at: DateTime<Utc>) {
        let mut counts = lock(&self.counts);
        if let Some(Coming { gate, waiting }) = counts.coming.remove(&at) {
            counts.active += waiting;
            gate.open();
        }
        self.changed.notify_waiters();
    }

    /// Returns when no turn makes progress, by the time that `now` tells.
    pub(super) async fn none(&self, now: impl Fn() -> DateTime<Utc>) {
        loop {
            let changed = self.changed.notified();
            {
                let counts = lock(&self.counts);
                let now = now();
                // What is farther away was not so when it was armed: the clock was set, and its turns are about to end.
                let is_to_come = |at: &DateTime<Utc>| *at > now && *at - now <= LOOKAHEAD;
                if counts.active == 0 && counts.coming.keys().all(is_to_come) {
                    return;
                }
            }
            changed.await;
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let mut counts = lock(&self.0.counts);
        // One that is aborted while it waits is not among them.
        counts.active = counts.active.saturating_sub(1);
        self.0.changed.notify_waiters();
    }
}
