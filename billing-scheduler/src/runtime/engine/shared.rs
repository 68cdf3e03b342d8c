//! The state that the handles and the tasks of one scheduler share.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{sync::watch, task::JoinSet};
use tracing::warn;

use super::{
    control_poll::PollState, due_queue::DueQueue, job_list::JobList, lease_cycle::Running,
    progress::Progress, scheduled_job::ScheduledJob,
};
use crate::{
    clock::Clock,
    job::{StopHandle, StopReason},
    registry::Registry,
    runtime::{
        queue::Queue,
        store::{ControlState, Lease, Store, StoreError},
        store_clock::StoreClock,
        surroundings::Surroundings,
    },
};

/// The time between two ticks.
pub(super) const TICK_INTERVAL: TimeDelta = TimeDelta::seconds(1);
/// How far ahead a tick starts lease cycles: until the next tick, and long enough that a job which is due just after that is
/// claimed by then.
pub(super) const LOOKAHEAD: TimeDelta = TimeDelta::milliseconds(1_250);

/// The phases of a scheduler, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Jobs are started when they are due.
    Open,
    /// Nothing is started; runs in progress continue.
    Draining,
    /// Runs in progress are requested to stop.
    Interrupting,
}

pub(super) struct Shared {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<StoreClock>,
    pub(super) surroundings: Arc<Surroundings>,
    /// The one-off jobs, if the store has a queue.
    pub(super) queue: Option<Arc<Queue>>,
    /// The kinds of jobs that are added while the scheduler runs.
    pub(super) kinds: OnceLock<Registry>,
    pub(super) jobs: RwLock<JobList>,
    /// Held during a reload.
    pub(super) reloading: Mutex<()>,
    pub(super) due_queue: Mutex<DueQueue>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) cycles: Mutex<JoinSet<()>>,
    /// The poll for control requests: at most one.
    pub(super) polls: Mutex<JoinSet<()>>,
    /// By the number of the job; ordered, so that a simulation is reproducible.
    pub(super) running: Mutex<BTreeMap<usize, Running>>,
    pub(super) control_state: Mutex<Option<ControlState>>,
    pub(super) poll_state: Mutex<PollState>,
    pub(super) progress: Arc<Progress>,
    /// The jobs that wait because a clock was ahead, with their cursors.
    pub(super) ahead: Mutex<BTreeMap<String, DateTime<Utc>>>,
    /// The wall clock and the monotonic clock at the last tick that started lease cycles.
    pub(super) last_tick: Mutex<Option<(DateTime<Utc>, Duration)>>,
}

impl Shared {
    /// Whether less time has passed on the wall clock than on the monotonic one since the last tick. Wake-ups recorded before are
    /// too late then.
    pub(super) fn clock_was_set_back(&self, now: DateTime<Utc>) -> bool {
        let monotonic = self.clock.monotonic();
        let Some((then, monotonic_then)) = lock(&self.last_tick).replace((now, monotonic)) else {
            return false;
        };
        let passed = TimeDelta::from_std(monotonic.saturating_sub(monotonic_then));
        passed.is_ok_and(|passed| passed - (now - then) > TICK_INTERVAL)
    }

    pub(super) fn jobs(&self) -> RwLockReadGuard<'_, JobList> {
        self.jobs.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the job with this name, unless it was removed.
    pub(super) fn job(&self, name: &str) -> Option<Arc<ScheduledJob>> {
        self.jobs().find(name).filter(|job| !job.is_removed()).cloned()
    }

    /// Extends a lease by its full length.
    pub(super) async fn renew(&self, lease: &Lease, stop: &StopHandle) {
        let sent = self.clock.monotonic();
        let name = &lease.job;
        match self.store.renew(lease).await {
            Ok(()) => stop.trust_lease_until(lease.trusted_until(sent)),
            Err(StoreError::LeaseLost { fencing_token, .. }) => {
                stop.stop(StopReason::LeaseLost);
                self.surroundings.events.emit_lost(name, fencing_token);
                warn!(job.name = %name, %fencing_token, "job `{name}` lost its lease and stops");
            }
            Err(error) => {
                warn!(job.name = %name, %error, "cannot renew the lease of job `{name}`: {error}");
            }
        }
    }

    /// Requests every run in progress to stop; returns their number.
    pub(super) fn interrupt(&self) -> usize {
        self.phase.send_replace(Phase::Interrupting);
        if let Some(queue) = &self.queue {
            queue.interrupt();
        }
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
    // No code in this crate leaves a half-changed value behind when it panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
