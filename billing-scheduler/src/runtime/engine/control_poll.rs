//! Polls the store for control requests about once a second, and for late jobs every ten seconds.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::shared::{Shared, lock};
use crate::{
    job::StopReason,
    runtime::store::{ControlAction, ControlRequest, ControlState, LateJob, Lease},
};

/// Late jobs are checked at every poll with this number.
const LATE_CHECK_EVERY: u32 = 10;

/// What is known from earlier polls.
#[derive(Default)]
pub(super) struct PollState {
    polls: u32,
    failed: bool,
    /// The late jobs that were reported.
    late: BTreeSet<(String, DateTime<Utc>)>,
}

impl Shared {
    /// Starts a poll, unless the last one has not ended.
    pub(super) fn poll(self: &Arc<Self>) {
        let mut polls = lock(&self.polls);
        while polls.try_join_next().is_some() {}
        if polls.is_empty() {
            let shared = Arc::clone(self);
            polls.spawn(async move {
                shared.poll_once().await;
                shared.report_late_jobs().await;
            });
        }
    }

    pub(super) async fn poll_once(self: &Arc<Self>) {
        let known = lock(&self.control_state).as_ref().map(|control_state| control_state.revision);
        let polled_at = self.clock.monotonic();
        let failed = match self.store.control_state(known).await {
            Ok(None) => false,
            Ok(Some(control_state)) => {
                // The next poll shows which run is meant.
                if !self.is_ambiguous(&control_state, polled_at) {
                    self.apply_control_state(&control_state);
                }
                false
            }
            Err(error) => {
                debug!(%error, "cannot poll the store for control requests: {error}");
                true
            }
        };
        let has_failed = std::mem::replace(&mut lock(&self.poll_state).failed, failed);
        if failed && !has_failed {
            // The jobs log each failure of the store.
            warn!("cannot poll the store for control requests; retrying");
        }
    }

    /// Whether a cancelled run may have ended since the poll was sent, with another run of the same claim in progress.
    fn is_ambiguous(&self, control_state: &ControlState, polled_at: Duration) -> bool {
        lock(&self.running).values().any(|running| {
            let cancels = |request: &ControlRequest| {
                let fencing_token = running.lease.as_ref().map(|lease| lease.fencing_token);
                let means_its_claim =
                    matches!(request.action, ControlAction::Cancel { fencing_token: meant } if fencing_token == Some(meant));
                request.job == running.job.name && means_its_claim
            };
            running.followed_at.is_some_and(|at| at >= polled_at) && control_state.requests.iter().any(cancels)
        })
    }

    /// Stops cancelled runs, and wakes the jobs with a new request, a new pause or an ended one.
    fn apply_control_state(self: &Arc<Self>, control_state: &ControlState) {
        let known = {
            let mut known = lock(&self.control_state);
            if known.as_ref().is_some_and(|known| known.revision >= control_state.revision) {
                return;
            }
            known.replace(control_state.clone())
        };
        let is_first = known.is_none();
        let known = known.unwrap_or_default();
        let is_new = |request: &&ControlRequest| known.requests.iter().all(|old| old.id != request.id);
        let mut affected = BTreeSet::new();
        for request in control_state.requests.iter().filter(is_new) {
            match request.action {
                ControlAction::Cancel { fencing_token } => {
                    self.cancel(request, |lease| {
                        lease.map_or(!is_first, |lease| lease.fencing_token == fencing_token)
                    });
                }
                _ => drop(affected.insert(&request.job)),
            }
        }
        for (job, pause) in &control_state.paused {
            if !known.paused.contains(&(job.clone(), pause.clone())) {
                affected.insert(job);
            }
        }
        let resumed = known.paused.iter().map(|(job, _)| job);
        affected.extend(resumed.filter(|job| control_state.paused.iter().all(|(paused, _)| paused != *job)));
        if affected.is_empty() {
            return;
        }
        let jobs: Vec<_> = self.jobs().iter().filter(|job| affected.contains(&job.name)).cloned().collect();
        for job in jobs {
            let now = self.clock.now();
            job.update_local(|local| local.record_pause(control_state.pause_of(&job.name), now));
            self.wake(&job);
        }
    }

    /// Stops the run of the job that `request` names, if `is_meant` returns true for its lease.
    fn cancel(&self, request: &ControlRequest, is_meant: impl Fn(Option<&Lease>) -> bool) {
        if let Some(running) =
            lock(&self.running).values_mut().find(|running| running.job.name == request.job)
            && running.cancelled.is_none()
            && is_meant(running.lease.as_ref())
        {
            running.cancelled = Some(request.description());
            running.stop.stop(StopReason::Cancelled);
            info!(job.name = %request.job, by = %request.by, "the run of job `{}` is {}", request.job, request.description());
        }
    }

    /// Stops the run of a claim whose cancellation was requested before the run could be stopped.
    pub(super) fn cancel_known(&self, lease: &Lease) {
        let cancel = ControlAction::Cancel { fencing_token: lease.fencing_token };
        let known = lock(&self.control_state).as_ref().and_then(|control_state| {
            control_state
                .requests
                .iter()
                .find(|request| request.job == lease.job && request.action == cancel)
                .cloned()
        });
        if let Some(request) = known {
            self.cancel(&request, |_| true);
        }
    }

    /// Whether the job is paused and no run of it is requested, by the last poll.
    pub(super) fn is_paused(&self, job: &str) -> bool {
        // After a failed poll, the pause may have ended.
        let has_failed = lock(&self.poll_state).failed;
        let is_paused = |state: &ControlState| state.pause_of(job).is_some();
        !has_failed
            && lock(&self.control_state).as_ref().is_some_and(is_paused)
            && !self.has_open_request(job)
    }

    /// Returns the known requests to run the job.
    pub(super) fn open_requests(&self, job: &str) -> Vec<Uuid> {
        let runs = |request: &&ControlRequest| {
            request.job == job && !matches!(request.action, ControlAction::Cancel { .. })
        };
        let control_state = lock(&self.control_state);
        let requests = control_state.iter().flat_map(|control_state| &control_state.requests);
        requests.filter(runs).map(|request| request.id).collect()
    }

    pub(super) fn has_open_request(&self, job: &str) -> bool {
        !self.open_requests(job).is_empty()
    }

    /// Removes requests that a run has answered from the known state.
    pub(super) fn remove_answered(&self, answered: impl IntoIterator<Item = Uuid>) {
        if let Some(control_state) = &mut *lock(&self.control_state) {
            for id in answered {
                control_state.requests.retain(|request| request.id != id);
            }
        }
    }

    /// Logs each job of this scheduler that is late, once, whichever process should have run it.
    async fn report_late_jobs(&self) {
        {
            let mut state = lock(&self.poll_state);
            state.polls = (state.polls + 1) % LATE_CHECK_EVERY;
            if state.polls != 0 || state.failed {
                return;
            }
        }
        let Ok(mut late) = self.store.late(self.clock.now()).await else { return };
        if !late.is_empty() {
            let jobs = self.jobs();
            let ours = jobs.iter().filter(|job| job.has_store_state()).map(|job| job.name.as_str());
            let ours: HashSet<&str> = ours.collect();
            late.retain(|late| ours.contains(late.job.as_str()));
        }
        let mut state = lock(&self.poll_state);
        let key = |late: &LateJob| (late.job.clone(), late.scheduled_at);
        let known = std::mem::replace(&mut state.late, late.iter().map(key).collect());
        for late in late.iter().filter(|late| !known.contains(&key(late))) {
            error!(job.name = %late.job, scheduled_at = %late.scheduled_at, late = true, "{late}");
        }
        for (job, scheduled_at) in known.difference(&state.late) {
            info!(job.name = %job, %scheduled_at, late = false, "job `{job}` is no longer late");
        }
    }
}
