//! Polls the store for control requests and the time at each tick or, without a run in progress, less often; and for late jobs at
//! every tenth poll.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::shared::{Shared, lock};
use crate::{
    clock::Clock,
    job::StopReason,
    runtime::store::{
        ControlAction, ControlRequest, ControlState, LateJob, Lease, Pause, StoreError, StorePoll,
    },
};

/// Late jobs are checked at every poll with this number.
const LATE_CHECK_EVERY: u32 = 10;

/// What is known from earlier polls.
#[derive(Default)]
pub(super) struct PollState {
    /// The number of ticks since the last poll.
    skipped: u32,
    /// The number of ticks from poll to poll while no run is in progress.
    pub(super) idle_ticks: u32,
    polls: u32,
    pub(super) failed: bool,
    /// Whether the store has answered a poll.
    has_answer: bool,
    /// The late jobs that were reported.
    late: BTreeSet<(String, DateTime<Utc>)>,
}

impl Shared {
    /// Starts a poll, unless the last one has not ended or none is necessary yet.
    pub(super) fn poll(self: &Arc<Self>) {
        if self.skips_poll() {
            return;
        }
        let mut polls = lock(&self.polls);
        while polls.try_join_next().is_some() {}
        if polls.is_empty() {
            let shared = Arc::clone(self);
            polls.spawn(async move {
                // The jobs log each failure of the store.
                let _ = shared.poll_once().await;
                if !shared.has_started() && !shared.is_closed() {
                    shared.arm_due();
                }
                shared.report_late_jobs().await;
            });
        }
    }

    /// Whether this tick polls nothing: no run waits for a cancellation, and the store answered the last poll.
    fn skips_poll(&self) -> bool {
        let is_idle = lock(&self.running).is_empty();
        let mut state = lock(&self.poll_state);
        let skips = is_idle && state.has_answer && !state.failed && state.skipped + 1 < state.idle_ticks;
        state.skipped = if skips { state.skipped + 1 } else { 0 };
        skips
    }

    /// Polls the store unless it has answered before. Only then the time is certain, and whether a job is paused.
    pub(super) async fn ensure_polled(self: &Arc<Self>) -> Result<(), StoreError> {
        if lock(&self.poll_state).has_answer {
            return Ok(());
        }
        self.poll_once().await
    }

    async fn poll_once(self: &Arc<Self>) -> Result<(), StoreError> {
        let known = lock(&self.control_state).as_ref().map(|control_state| control_state.revision);
        let polled_at = self.clock.monotonic();
        let polled = self.store.poll(known).await;
        let has_failed = {
            let mut state = lock(&self.poll_state);
            state.has_answer |= polled.is_ok();
            std::mem::replace(&mut state.failed, polled.is_err())
        };
        let StorePoll { now, changed } = match polled {
            Ok(poll) => poll,
            Err(error) => {
                debug!(%error, "cannot poll the store for control requests: {error}");
                if !has_failed {
                    warn!("cannot poll the store for control requests; retrying");
                }
                return Err(error);
            }
        };
        if let Some(correction) = now.and_then(|now| self.clock.observe(polled_at, now)) {
            report_correction(correction);
        }
        if has_failed {
            self.end_store_backoffs();
        }
        // The next poll shows which run is meant.
        if let Some(control_state) = changed.filter(|changed| !self.is_ambiguous(changed, polled_at)) {
            self.apply_control_state(&control_state);
        }
        Ok(())
    }

    /// Wakes the jobs that wait because the store failed: it answers again.
    fn end_store_backoffs(self: &Arc<Self>) {
        let failed: Vec<_> = self.jobs().iter().filter(|job| job.reset_store_failures()).cloned().collect();
        for job in failed {
            self.wake(&job);
        }
    }

    /// Whether a cancelled run may have ended since the poll was sent, with another run of the same claim in progress.
    fn is_ambiguous(&self, control_state: &ControlState, polled_at: Duration) -> bool {
        lock(&self.running).values().any(|running| {
            let cancels = |request: &ControlRequest| {
                let fencing_token = running.lease.as_ref().map(|lease| lease.fencing_token);
                let means_its_claim =
                    matches!(request.action, ControlAction::Cancel { fencing_token: meant } if fencing_token == Some(meant));
                *request.job == *running.job.name && means_its_claim
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
                _ => drop(affected.insert(request.job.as_str())),
            }
        }
        for (job, pause) in &control_state.paused {
            if !known.paused.contains(&(job.clone(), pause.clone())) {
                affected.insert(job.as_str());
            }
        }
        let resumed = known.paused.iter().map(|(job, _)| job.as_str());
        affected.extend(resumed.filter(|job| control_state.paused.iter().all(|(paused, _)| paused != job)));
        if affected.is_empty() {
            return;
        }
        let jobs: Vec<_> = self.jobs().iter().filter(|job| affected.contains(&*job.name)).cloned().collect();
        for job in jobs {
            let now = self.clock.now();
            job.update_local(|local| local.record_pause(control_state.pause_of(&job.name), now));
            self.wake(&job);
        }
    }

    /// The revision of the newest poll.
    pub(super) fn control_revision(&self) -> Option<i64> {
        lock(&self.control_state).as_ref().map(|known| known.revision)
    }

    /// Notes a pause that a claim has found before a poll has: otherwise no poll would show that it ended, if that was soon. Returns false
    /// if a poll since `revision` may have shown its end already.
    pub(super) fn note_pause(&self, job: &str, pause: &Pause, revision: Option<i64>) -> bool {
        let mut known = lock(&self.control_state);
        let Some(known) = known.as_mut() else { return false };
        if known.pause_of(job).is_none() && Some(known.revision) == revision {
            known.paused.push((job.to_owned(), pause.clone()));
        }
        known.pause_of(job).is_some()
    }

    /// Stops the run of the job that `request` names, if `is_meant` returns true for its lease.
    fn cancel(&self, request: &ControlRequest, is_meant: impl Fn(Option<&Lease>) -> bool) {
        if let Some(running) =
            lock(&self.running).values_mut().find(|running| *running.job.name == *request.job)
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
        let control_state = lock(&self.control_state);
        let requests = control_state.iter().flat_map(|control_state| &control_state.requests);
        requests.filter(|request| request.is_claimed_with(job)).map(|request| request.id).collect()
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
            let ours = jobs.iter().filter(|job| job.has_store_state()).map(|job| &*job.name);
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

/// Logs that the clock of the scheduler adds `correction` to the host's from now on.
fn report_correction(correction: TimeDelta) {
    let seconds = correction.as_seconds_f64();
    if correction == TimeDelta::zero() {
        info!(clock.offset = seconds, "the clocks of this host and of the store agree again");
        return;
    }
    let direction = if correction > TimeDelta::zero() { "behind" } else { "ahead of" };
    let shown = crate::duration::format(correction.abs().to_std().unwrap_or_default());
    warn!(
        clock.offset = seconds,
        "the clock of this host is {shown} {direction} that of the store, which the schedules follow: synchronize both clocks"
    );
}
