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
    runtime::store::{ControlAction, ControlRequest, ControlState, LateJob, Lease},
};

/// Late jobs are looked for at each so many-th question to the store.
const LATE_CHECK_EVERY: u32 = 10;

/// What is remembered about questions to the store.
#[derive(Default)]
pub(super) struct PollState {
    polls: u32,
    failed: bool,
    /// Late jobs that were reported already.
    late: BTreeSet<(String, DateTime<Utc>)>,
}

/// What people ask for.
impl Inner {
    /// Asks the store, unless it has not answered the last time yet.
    pub(super) fn poll(self: &Arc<Self>) {
        let mut polls = lock(&self.polls);
        while polls.try_join_next().is_some() {}
        if polls.is_empty() {
            let inner = Arc::clone(self);
            polls.spawn(async move {
                inner.poll_once().await;
                inner.report_late_jobs().await;
            });
        }
    }

    pub(super) async fn poll_once(self: &Arc<Self>) {
        let known = lock(&self.control_state).as_ref().map(|control_state| control_state.revision);
        let polled_at = self.clock.monotonic();
        let failed = match self.store.control_state(known).await {
            Ok(None) => false,
            Ok(Some(control_state)) => {
                // The next answer tells what is meant.
                if !self.is_ambiguous(&control_state, polled_at) {
                    self.apply_control_state(&control_state);
                }
                false
            }
            Err(error) => {
                // The jobs themselves tell it again and again.
                debug!(%error, "cannot ask the store what is wished for: {error}");
                true
            }
        };
        let has_failed = std::mem::replace(&mut lock(&self.poll_state).failed, failed);
        if failed && !has_failed {
            warn!("the store does not answer what is wished for: requests are obeyed when it does");
        }
    }

    /// Whether a run that `wishes` cancel may be over, and another one of the same claim be under way since they were asked for.
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

    /// Stops what was cancelled and wakes the jobs of which anything new is asked.
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
        let mut concerned = BTreeSet::new();
        for request in control_state.requests.iter().filter(is_new) {
            match request.action {
                ControlAction::Cancel { fencing_token } => {
                    self.cancel(request, |lease| {
                        lease.map_or(!is_first, |lease| lease.fencing_token == fencing_token)
                    });
                }
                _ => drop(concerned.insert(&request.job)),
            }
        }
        for (job, pause) in &control_state.paused {
            if !known.paused.contains(&(job.clone(), pause.clone())) {
                concerned.insert(job);
            }
        }
        let resumed = known.paused.iter().map(|(job, _)| job);
        concerned.extend(resumed.filter(|job| control_state.paused.iter().all(|(paused, _)| paused != *job)));
        if concerned.is_empty() {
            return;
        }
        let jobs: Vec<_> = self.jobs().iter().filter(|job| concerned.contains(&job.name)).cloned().collect();
        for job in jobs {
            let now = self.clock.now();
            job.update_local(|local| local.remember_pause(control_state.pause_of(&job.name), now));
            self.wake(&job);
        }
    }

    /// Stops the run of the job that `request` names, if it is the one that is meant.
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

    /// A wish to cancel this very claim may have come before its run was there to be stopped.
    pub(super) fn cancel_known(&self, lease: &Lease) {
        let what = ControlAction::Cancel { fencing_token: lease.fencing_token };
        let known = lock(&self.control_state).as_ref().and_then(|control_state| {
            control_state
                .requests
                .iter()
                .find(|request| request.job == lease.job && request.action == what)
                .cloned()
        });
        if let Some(request) = known {
            self.cancel(&request, |_| true);
        }
    }

    /// What is known to be asked for, beside the cancellation of a claim.
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

    /// These requests are answered. What was asked for since is not.
    pub(super) fn remove_answered(&self, answered: impl IntoIterator<Item = Uuid>) {
        if let Some(control_state) = &mut *lock(&self.control_state) {
            for id in answered {
                control_state.requests.retain(|request| request.id != id);
            }
        }
    }

    /// Reports each job of ours that is late, once, whoever should have run it.
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
            let ours = jobs.iter().filter(|job| job.is_expected_of_the_store()).map(|job| job.name.as_str());
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
            info!(job.name = %job, %scheduled_at, late = false, "job `{job}` is late no more");
        }
    }
}
