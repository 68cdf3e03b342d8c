//! The claims of a worker, from the claim of a job until its result is recorded.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use uuid::Uuid;

use super::decide::claim_limits;
use crate::job::{FencingToken, StopHandle, StopReason};

/// The most results that wait to be recorded. A worker whose store is unavailable claims nothing more then.
pub(super) const MAX_UNRECORDED: usize = 2_000;

#[derive(Default)]
pub(super) struct Claims(Mutex<State>);

#[derive(Default)]
struct State {
    held: HashMap<Uuid, Held>,
    /// The number of runs in progress of each kind.
    running: HashMap<String, u32>,
    /// The number of runs that have ended and are not recorded.
    unrecorded: usize,
}

/// A claimed job whose result is not recorded yet.
struct Held {
    kind: String,
    fencing_token: FencingToken,
    stop: StopHandle,
    /// Whether its run has ended, so that another job may run instead.
    is_ended: bool,
    /// Whether the loss of the claim was reported.
    is_lost: bool,
}

impl State {
    fn running(&self, kind: &str) -> u32 {
        self.running.get(kind).copied().unwrap_or(0)
    }

    fn end_run(&mut self, id: Uuid) {
        if let Some(job) = self.held.get_mut(&id)
            && !std::mem::replace(&mut job.is_ended, true)
        {
            self.unrecorded += 1;
            if let Some(running) = self.running.get_mut(&job.kind) {
                *running -= 1;
            }
        }
    }
}

impl Claims {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a claim. If this process still runs the job under an older one, which has expired, that run stops and no longer counts.
    /// Returns the token of the older claim, unless its loss was reported.
    pub(super) fn add(
        &self,
        id: Uuid,
        kind: &str,
        fencing_token: FencingToken,
        stop: StopHandle,
    ) -> Option<FencingToken> {
        let held = Held { kind: kind.to_owned(), fencing_token, stop, is_ended: false, is_lost: false };
        let mut state = self.lock();
        state.end_run(id);
        *state.running.entry(kind.to_owned()).or_default() += 1;
        let old = state.held.insert(id, held)?;
        state.unrecorded -= 1;
        old.stop.stop(StopReason::LeaseLost);
        (!old.is_lost).then_some(old.fencing_token)
    }

    /// Whether a quarter of the places of one of `kinds`, which have names and limits, is free.
    pub(super) fn have_room<'a>(&self, mut kinds: impl Iterator<Item = (&'a str, u32)>) -> bool {
        let state = self.lock();
        state.unrecorded < MAX_UNRECORDED
            && kinds.any(|(kind, limit)| limit.saturating_sub(state.running(kind)) >= limit.div_ceil(4))
    }

    /// Returns how many jobs of each of `kinds` may be claimed.
    pub(super) fn free<'a>(&self, kinds: impl Iterator<Item = (&'a str, u32)>) -> Vec<(String, u32)> {
        let state = self.lock();
        if state.unrecorded >= MAX_UNRECORDED {
            return Vec::new();
        }
        claim_limits(kinds.map(|(kind, limit)| (kind, limit, state.running(kind))))
    }

    /// Whether this is the newest claim of the job by this process.
    pub(super) fn is_newest(&self, id: Uuid, fencing_token: FencingToken) -> bool {
        self.lock().held.get(&id).is_some_and(|job| job.fencing_token == fencing_token)
    }

    /// Ends the run of a claim, unless the job was claimed again meanwhile.
    pub(super) fn end_run(&self, id: Uuid, fencing_token: FencingToken) {
        let mut state = self.lock();
        if state.held.get(&id).is_some_and(|job| job.fencing_token == fencing_token) {
            state.end_run(id);
        }
    }

    /// Removes a claim, unless the job was claimed again meanwhile. Returns whether its loss was reported.
    pub(super) fn remove(&self, id: Uuid, fencing_token: FencingToken) -> bool {
        let mut state = self.lock();
        if state.held.get(&id).is_none_or(|job| job.fencing_token != fencing_token) {
            return false;
        }
        state.end_run(id);
        state.unrecorded -= 1;
        state.held.remove(&id).is_some_and(|job| job.is_lost)
    }

    pub(super) fn held(&self) -> Vec<(Uuid, FencingToken)> {
        self.lock().held.iter().map(|(id, job)| (*id, job.fencing_token)).collect()
    }

    /// Applies a renewal of `claims`, of which the store renewed `held`: runs are trusted until then, or stop. Returns the kinds and the
    /// fencing tokens of the claims that are lost.
    pub(super) fn renewed(
        &self,
        claims: &[(Uuid, FencingToken)],
        held: &[Uuid],
        trusted_until: Duration,
    ) -> Vec<(String, FencingToken)> {
        let held: HashSet<_> = held.iter().collect();
        let mut state = self.lock();
        let mut lost = Vec::new();
        for (id, fencing_token) in claims {
            // A claim whose result was recorded meanwhile is no longer in force.
            let job = state.held.get_mut(id);
            let Some(job) = job.filter(|job| job.fencing_token == *fencing_token) else { continue };
            if held.contains(id) {
                job.stop.trust_lease_until(trusted_until);
            } else if !job.is_ended {
                job.stop.stop(StopReason::LeaseLost);
                if !std::mem::replace(&mut job.is_lost, true) {
                    lost.push((job.kind.clone(), *fencing_token));
                }
            }
        }
        lost
    }

    pub(super) fn stop_all(&self, reason: StopReason) {
        self.lock().held.values().for_each(|job| job.stop.stop(reason));
    }

    pub(super) fn clear(&self) {
        *self.lock() = State::default();
    }
}
