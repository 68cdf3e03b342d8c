//! What the parts of a scheduler share.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{sync::watch, task::JoinSet};

use super::{
    control_poll::PollState, due_queue::DueQueue, lease_cycle::Running, progress::Progress,
    scheduled_job::ScheduledJob,
};
use crate::{
    clock::Clock,
    job::StopReason,
    mask::Mask,
    runtime::{
        middleware::Middleware,
        store::{ControlState, Store},
    },
};

/// How soon the next tick comes.
pub(super) const TICK_INTERVAL: TimeDelta = TimeDelta::seconds(1);
/// A tick arms everything that is due up to so much later, also a job that begins to wait for such an instant after it: until
/// the next tick comes, and long enough that what follows that at once is claimed by then.
pub(super) const LOOKAHEAD: TimeDelta = TimeDelta::milliseconds(1_250);

/// The life of a scheduler, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Jobs are started when they are due.
    Open,
    /// Nothing is started; runs in progress continue.
    Draining,
    /// Runs in progress are asked to stop.
    Interrupting,
}

pub(super) struct Inner {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) middleware: Vec<Arc<dyn Middleware>>,
    /// Hides secrets in what jobs return.
    pub(super) mask: Mutex<Mask>,
    pub(super) jobs: RwLock<Vec<Arc<ScheduledJob>>>,
    /// Held during a reload.
    pub(super) reloading: Mutex<()>,
    /// Of the jobs by their place in `entries`.
    pub(super) due_queue: Mutex<DueQueue>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) cycles: Mutex<JoinSet<()>>,
    /// The question to the store what people ask for: one at a time.
    pub(super) polls: Mutex<JoinSet<()>>,
    /// By the place of the job, and in that order, so that a simulation repeats itself.
    pub(super) running: Mutex<BTreeMap<usize, Running>>,
    pub(super) control_state: Mutex<Option<ControlState>>,
    pub(super) poll_state: Mutex<PollState>,
    pub(super) progress: Arc<Progress>,
    /// The jobs that wait because a clock was ahead, and up to when they are finished.
    pub(super) ahead: Mutex<BTreeMap<String, DateTime<Utc>>>,
    /// What the wall clock and the monotonic one showed at the last tick.
    pub(super) last_tick: Mutex<Option<(DateTime<Utc>, Duration)>>,
}

impl Inner {
    /// Whether less time has passed on the wall than in truth since the last tick: times noted before are too late then.
    pub(super) fn clock_was_set_back(&self, now: DateTime<Utc>) -> bool {
        let monotonic = self.clock.monotonic();
        let Some((then, monotonic_then)) = lock(&self.last_tick).replace((now, monotonic)) else {
            return false;
        };
        let passed = TimeDelta::from_std(monotonic.saturating_sub(monotonic_then));
        passed.is_ok_and(|passed| passed - (now - then) > TICK_INTERVAL)
    }

    pub(super) fn jobs(&self) -> RwLockReadGuard<'_, Vec<Arc<ScheduledJob>>> {
        self.jobs.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks every run in progress to stop; returns how many these are.
    pub(super) fn interrupt(&self) -> usize {
        self.phase.send_replace(Phase::Interrupting);
        let running = lock(&self.running);
        for running in running.values() {
            running.stop.stop(StopReason::Drain);
        }
        running.len()
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.phase.borrow() != Phase::Open
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here leaves a lock's value half changed when it panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
