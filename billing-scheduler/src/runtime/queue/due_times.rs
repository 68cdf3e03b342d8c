//! When the jobs are due that this process has added: the worker claims at these instants. Polls find the jobs of other processes.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The most instants that are kept; polls find the jobs of later ones.
const MAX_INSTANTS: usize = 1_024;

/// Instants by the monotonic clock.
#[derive(Default)]
pub(super) struct DueTimes(Mutex<BTreeSet<Duration>>);

impl DueTimes {
    pub(super) fn add(&self, instants: impl Iterator<Item = Duration>) {
        let mut times = self.lock();
        for at in instants {
            times.insert(at);
            if times.len() > MAX_INSTANTS {
                times.pop_last();
            }
        }
    }

    /// Removes the instants up to `now`, because a claim follows.
    pub(super) fn remove_past(&self, now: Duration) {
        let mut times = self.lock();
        while times.first().is_some_and(|at| *at <= now) {
            times.pop_first();
        }
    }

    /// Returns the time from `now` until the first instant.
    pub(super) fn wait(&self, now: Duration) -> Option<Duration> {
        self.lock().first().map(|at| at.saturating_sub(now))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Duration>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
