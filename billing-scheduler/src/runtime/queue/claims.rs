//! The claims of a worker, from the claim of a job until its result is recorded.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use uuid::Uuid;

use super::decide::claim_limits;
use crate::job::{FencingToken, StopHandle, StopReason};

/// The most results that wait to be recorded. A worker whose store is unavailable claims nothing more then.
const MAX_UNRECORDED: u32 = 10_000;

#[derive(Default)]
pub(super) struct Claims(Mutex<HashMap<Uuid, Held>>);

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

impl Claims {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, id: Uuid, kind: &str, fencing_token: FencingToken, stop: StopHandle) {
        let held = Held { kind: kind.to_owned(), fencing_token, stop, is_ended: false, is_lost: false };
        self.lock().insert(id, held);
    }

    /// Returns how many jobs of each of `kinds`, which have names and limits, may be claimed.
    pub(super) fn limits<'a>(&self, kinds: impl Iterator<Item = (&'a str, u32)>) -> Vec<(String, u32)> {
        let held = self.lock();
        let mut running: BTreeMap<&str, u32> = BTreeMap::new();
        let mut unrecorded = 0;
        for job in held.values() {
            if job.is_ended {
                unrecorded += 1;
            } else {
                *running.entry(&job.kind).or_default() += 1;
            }
        }
        if unrecorded >= MAX_UNRECORDED {
            return Vec::new();
        }
        claim_limits(kinds.map(|(kind, limit)| (kind, limit, running.get(kind).copied().unwrap_or(0))))
    }

    pub(super) fn end_run(&self, id: Uuid) {
        if let Some(job) = self.lock().get_mut(&id) {
            job.is_ended = true;
        }
    }

    /// Removes a claim. Returns whether its loss was reported.
    pub(super) fn remove(&self, id: Uuid) -> bool {
        self.lock().remove(&id).is_some_and(|job| job.is_lost)
    }

    pub(super) fn held(&self) -> Vec<(Uuid, FencingToken)> {
        self.lock().iter().map(|(id, job)| (*id, job.fencing_token)).collect()
    }

    /// Applies a renewal of `claims`, of which the store renewed `held`: runs are trusted until then, or stop. Returns the kinds and the
    /// fencing tokens of the claims that are lost.
    pub(super) fn renewed(
        &self,
        claims: &[(Uuid, FencingToken)],
        held: &[Uuid],
        trusted_until: Duration,
    ) -> Vec<(String, FencingToken)> {
        let held: std::collections::HashSet<_> = held.iter().collect();
        let mut jobs = self.lock();
        let mut lost = Vec::new();
        for (id, fencing_token) in claims {
            // A claim whose result was recorded meanwhile is no longer in force.
            let Some(job) = jobs.get_mut(id).filter(|job| job.fencing_token == *fencing_token) else {
                continue;
            };
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
        self.lock().values().for_each(|job| job.stop.stop(reason));
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}
