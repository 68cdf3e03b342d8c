//! What people ask for, and which jobs are late: one question to the store about once a second.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::shared::{Inner, lock};
use crate::{
    job::StopReason,
    runtime::store::{Late, Lease, Request, What, Wishes},
};

/// Late jobs are looked for at each so many-th question to the store.
const LATE_EVERY: u32 = 10;

/// What is remembered about questions to the store.
#[derive(Default)]
pub(super) struct Watch {
    asked: u32,
    failed: bool,
    /// Late jobs that were reported already.
    late: BTreeSet<(String, DateTime<Utc>)>,
}

/// What people ask for.
impl Inner {
    /// Asks the store, unless it has not answered the last time yet.
    pub(super) fn ask(self: &Arc<Self>) {
        let mut questions = lock(&self.questions);
        while questions.try_join_next().is_some() {}
        if questions.is_empty() {
            let inner = Arc::clone(self);
            questions.spawn(async move {
                inner.ask_once().await;
                inner.look_for_late_jobs().await;
            });
        }
    }

    pub(super) async fn ask_once(self: &Arc<Self>) {
        let known = lock(&self.wishes).as_ref().map(|wishes| wishes.revision);
        let asked_at = self.clock.monotonic();
        let failed = match self.store.wishes(known).await {
            Ok(None) => false,
            Ok(Some(wishes)) => {
                // The next answer tells what is meant.
                if !self.is_ambiguous(&wishes, asked_at) {
                    self.obey(&wishes);
                }
                false
            }
            Err(error) => {
                // The jobs themselves tell it again and again.
                debug!(%error, "cannot ask the store what is wished for: {error}");
                true
            }
        };
        let has_failed = std::mem::replace(&mut lock(&self.watch).failed, failed);
        if failed && !has_failed {
            warn!("the store does not answer what is wished for: requests are obeyed when it does");
        }
    }

    /// Whether a run that `wishes` cancel may be over, and another one of the same claim be under way since they were asked for.
    fn is_ambiguous(&self, wishes: &Wishes, asked_at: Duration) -> bool {
        lock(&self.running).values().any(|running| {
            let cancels = |request: &Request| {
                let fence = running.lease.as_ref().map(|lease| lease.fence);
                let means_its_claim =
                    matches!(request.what, What::Cancel { fence: meant } if fence == Some(meant));
                request.job == running.job.name && means_its_claim
            };
            running.followed_at.is_some_and(|at| at >= asked_at) && wishes.requests.iter().any(cancels)
        })
    }

    /// Stops what was cancelled and wakes the jobs of which anything new is asked.
    fn obey(self: &Arc<Self>, wishes: &Wishes) {
        let known = {
            let mut known = lock(&self.wishes);
            if known.as_ref().is_some_and(|known| known.revision >= wishes.revision) {
                return;
            }
            known.replace(wishes.clone())
        };
        let is_first = known.is_none();
        let known = known.unwrap_or_default();
        let is_new = |request: &&Request| known.requests.iter().all(|old| old.id != request.id);
        let mut concerned = BTreeSet::new();
        for request in wishes.requests.iter().filter(is_new) {
            match request.what {
                What::Cancel { fence } => {
                    self.cancel(request, |lease| lease.map_or(!is_first, |lease| lease.fence == fence));
                }
                _ => drop(concerned.insert(&request.job)),
            }
        }
        for (job, pause) in &wishes.paused {
            if !known.paused.contains(&(job.clone(), pause.clone())) {
                concerned.insert(job);
            }
        }
        let resumed = known.paused.iter().map(|(job, _)| job);
        concerned.extend(resumed.filter(|job| wishes.paused.iter().all(|(paused, _)| paused != *job)));
        if concerned.is_empty() {
            return;
        }
        let entries: Vec<_> =
            self.entries().iter().filter(|entry| concerned.contains(&entry.name)).cloned().collect();
        for entry in entries {
            let now = self.clock.now();
            entry.remember(|memory| memory.remember_pause(wishes.pause_of(&entry.name), now));
            self.wake(&entry);
        }
    }

    /// Stops the run of the job that `request` names, if it is the one that is meant.
    fn cancel(&self, request: &Request, is_meant: impl Fn(Option<&Lease>) -> bool) {
        if let Some(running) =
            lock(&self.running).values_mut().find(|running| running.job.name == request.job)
            && running.cancelled.is_none()
            && is_meant(running.lease.as_ref())
        {
            running.cancelled = Some(request.sentence());
            running.stop.stop(StopReason::Cancelled);
            info!(job.name = %request.job, by = %request.by, "the run of job `{}` is {}", request.job, request.sentence());
        }
    }

    /// A wish to cancel this very claim may have come before its run was there to be stopped.
    pub(super) fn cancel_known(&self, lease: &Lease) {
        let what = What::Cancel { fence: lease.fence };
        let known = lock(&self.wishes).as_ref().and_then(|wishes| {
            wishes.requests.iter().find(|request| request.job == lease.job && request.what == what).cloned()
        });
        if let Some(request) = known {
            self.cancel(&request, |_| true);
        }
    }

    /// What is known to be asked for, beside the cancellation of a claim.
    pub(super) fn asked_for(&self, job: &str) -> Vec<Uuid> {
        let runs = |request: &&Request| request.job == job && !matches!(request.what, What::Cancel { .. });
        let wishes = lock(&self.wishes);
        let requests = wishes.iter().flat_map(|wishes| &wishes.requests);
        requests.filter(runs).map(|request| request.id).collect()
    }

    pub(super) fn is_asked_for(&self, job: &str) -> bool {
        !self.asked_for(job).is_empty()
    }

    /// These requests are answered. What was asked for since is not.
    pub(super) fn forget(&self, answered: impl IntoIterator<Item = Uuid>) {
        if let Some(wishes) = &mut *lock(&self.wishes) {
            for id in answered {
                wishes.requests.retain(|request| request.id != id);
            }
        }
    }

    /// Reports each job of ours that is late, once, whoever should have run it.
    async fn look_for_late_jobs(&self) {
        {
            let mut watch = lock(&self.watch);
            watch.asked = (watch.asked + 1) % LATE_EVERY;
            if watch.asked != 0 || watch.failed {
                return;
            }
        }
        let Ok(mut late) = self.store.late(self.clock.now()).await else { return };
        if !late.is_empty() {
            let entries = self.entries();
            let ours = entries
                .iter()
                .filter(|entry| entry.is_expected_of_the_store())
                .map(|entry| entry.name.as_str());
            let ours: HashSet<&str> = ours.collect();
            late.retain(|late| ours.contains(late.job.as_str()));
        }
        let mut watch = lock(&self.watch);
        let key = |late: &Late| (late.job.clone(), late.scheduled_at);
        let known = std::mem::replace(&mut watch.late, late.iter().map(key).collect());
        for late in late.iter().filter(|late| !known.contains(&key(late))) {
            error!(job.name = %late.job, scheduled_at = %late.scheduled_at, late = true, "{late}");
        }
        for (job, scheduled_at) in known.difference(&watch.late) {
            info!(job.name = %job, %scheduled_at, late = false, "job `{job}` is late no more");
        }
    }
}
