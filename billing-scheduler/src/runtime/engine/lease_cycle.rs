//! One lease cycle of a job: claim, decide, run, record, decide again, release. Catch-up, restart and takeover use this one path.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt as _;
use tracing::{debug, error, warn};
use uuid::Uuid;

use super::{
    actions::{Actions, released_hint},
    due_queue::{NEVER, Wakeup},
    scheduled_job::{Definition, ScheduledJob},
    shared::{Shared, TICK_INTERVAL, lock},
    start_gate::StartGate,
};
use crate::{
    clock::Clock,
    job::{StopHandle, StopReason},
    runtime::{
        decide::{
            JobSpec, Scope,
            next_action::{
                JobSnapshot, PAUSED_POLL, edited_hint, first_cursor, hint_for_release, hint_of_removed_job,
            },
        },
        events::Event,
        executor::RunTask,
        store::{Claim, JobState, Lease, StoreError},
    },
};

/// The longest wait before the next request to a store that failed, while the polls of the store fail as well. The first poll that
/// succeeds ends it.
const MAX_OUTAGE_BACKOFF: TimeDelta = TimeDelta::seconds(30);
/// The longest wait while the polls succeed: they only read, so the disk of the store may be full.
const MAX_STORE_BACKOFF: TimeDelta = TimeDelta::seconds(4);

pub(super) struct LeaseCycle {
    pub(super) shared: Arc<Shared>,
    pub(super) job: Arc<ScheduledJob>,
    pub(super) definition: Arc<Definition>,
    /// When the job is expected to be due; the begin of the cycle if that has passed.
    pub(super) at: DateTime<Utc>,
    /// The gate of the jobs that are due at the same instant.
    pub(super) gate: Arc<StartGate>,
    /// Whether it occupies a place for late cycles, which it does until it has decided.
    holds_late_slot: AtomicBool,
    /// When the job wakes up next.
    next: NextWakeup,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct NextWakeup {
    at: DateTime<Utc>,
    /// Whether the job is due then. Other wake-ups are checks, which must not come early.
    is_instant: bool,
}

/// How the actions of a lease cycle ended.
pub(super) struct CycleEnd {
    pub(super) next: NextWakeup,
    /// Whether the lease was released with the last record.
    pub(super) released: bool,
}

/// A lease cycle that may have a run to stop.
pub(super) struct Running {
    pub(super) job: Arc<ScheduledJob>,
    pub(super) stop: StopHandle,
    pub(super) lease: Option<Lease>,
    /// Who cancelled the run, and why.
    pub(super) cancelled: Option<String>,
    /// When a run followed another one under this claim, by the monotonic clock.
    pub(super) followed_at: Option<Duration>,
}

impl NextWakeup {
    pub(super) fn instant(at: DateTime<Utc>) -> Self {
        Self { at, is_instant: true }
    }

    fn earlier(self, other: Self) -> Self {
        if other.at < self.at { other } else { self }
    }
}

impl From<DateTime<Utc>> for NextWakeup {
    fn from(at: DateTime<Utc>) -> Self {
        Self { at, is_instant: false }
    }
}

impl<T: Into<NextWakeup>> From<T> for CycleEnd {
    fn from(next: T) -> Self {
        Self { next: next.into(), released: false }
    }
}

impl LeaseCycle {
    pub(super) fn new(
        shared: Arc<Shared>,
        job: Arc<ScheduledJob>,
        wakeup: Wakeup,
        gate: Arc<StartGate>,
    ) -> Self {
        let now = shared.clock.now();
        Self {
            definition: Arc::new(job.definition()),
            job,
            at: if wakeup.is_late { now } else { wakeup.at },
            gate,
            holds_late_slot: AtomicBool::new(wakeup.is_late),
            // However the cycle ends, the job wakes up again.
            next: (now + TICK_INTERVAL).into(),
            shared,
        }
    }

    /// Runs the cycle to its end.
    pub(super) async fn run(mut self) {
        if self.shared.is_closed() {
            return;
        }
        self.next = self.run_cycle().await;
        if self.next.is_instant {
            let (job, at) = (&self.job.name, self.next.at);
            self.shared.surroundings.events.emit(|| Event::Scheduled { job: job.to_string(), at });
        }
        if let Some(abandoned) = self.job.take_abandoned() {
            self.shared.wait_for_abandoned(&self.job.name, abandoned).await;
        }
    }

    /// Sets the next wake-up.
    pub(super) fn wake_at(&mut self, at: DateTime<Utc>) {
        self.next = at.into();
    }

    pub(super) fn spec(&self) -> &JobSpec {
        &self.definition.spec
    }

    /// Whether the job was paused, cancelled, requested or removed since the cycle began.
    pub(super) fn is_requeued(&self) -> bool {
        lock(&self.shared.due_queue).is_requeued(self.job.index())
    }

    /// Frees the place for another late cycle: a run may take any time.
    pub(super) fn release_late_slot(&self) {
        if self.holds_late_slot.swap(false, Ordering::SeqCst) {
            lock(&self.shared.due_queue).release_late_slot();
            self.shared.arm_late();
        }
    }

    async fn run_cycle(&self) -> NextWakeup {
        let (shared, name) = (&self.shared, &self.job.name);
        if self.job.is_removed() {
            return self.retire().await;
        }
        let polled = shared.ensure_polled().await;
        match (self.spec().scope, polled) {
            (Scope::Cluster, _) if self.is_paused() => (shared.clock.now() + PAUSED_POLL).into(),
            (Scope::Cluster, Ok(())) => self.with_lease().await,
            (Scope::Cluster, Err(error)) => shared.store_failed(&self.job, &error).into(),
            (Scope::Node, _) => {
                // A requested run happens once, on the node that claims it.
                let mut requested = None;
                if shared.has_open_request(name) {
                    requested = Some(self.with_lease().await);
                }
                let next = self.run_node_cycle().await;
                // The request is still open if another node holds the lease.
                let requested = requested.filter(|_| shared.has_open_request(name));
                requested.map_or(next, |requested| next.earlier(requested))
            }
        }
    }

    /// Whether a claim would only find that the job is paused. A definition that the store has no claim hint of is claimed once.
    fn is_paused(&self) -> bool {
        self.job.has_left_hint.load(Ordering::SeqCst) && self.shared.is_paused(&self.job.name)
    }

    async fn with_lease(&self) -> NextWakeup {
        let (shared, spec) = (&self.shared, self.spec());
        let began = shared.clock.now();
        let stop = StopHandle::new();
        let open_requests = shared.open_requests(&spec.name);
        let revision = shared.control_revision();
        let is_shared = spec.scope == Scope::Cluster;
        let mut edits = if is_shared { &self.definition.edits[..] } else { &[] };
        let (mut lease, sent) = loop {
            let sent = shared.clock.monotonic();
            let lease = match shared.store.acquire(&spec.name, first_cursor(spec, began)).await {
                Ok(Claim::Held(lease)) => lease,
                Ok(Claim::Busy { holder }) => {
                    debug!(job.name = %spec.name, %holder, "job `{}` is run by {holder}", spec.name);
                    return (shared.clock.now() + TICK_INTERVAL).into();
                }
                Err(error) => return shared.store_failed(&self.job, &error).into(),
            };
            let hint = lease.claim_hint.as_ref().filter(|_| is_shared);
            let edited = hint.and_then(|hint| edited_hint(spec, hint, edits, began));
            let Some(edited) = edited else { break (lease, sent) };
            // The definition of this cycle may be older than the hint.
            let is_requeued = self.is_requeued();
            let claim_hint = if is_requeued { lease.claim_hint.clone() } else { Some(edited) };
            // The time of the change is stored before the times until then are run. A process that continues them after a crash would
            // otherwise take its own start for it.
            if let Err(error) = shared.store.release(&Lease { claim_hint, ..lease }).await {
                return shared.store_failed(&self.job, &error).into();
            }
            if is_requeued {
                return began.into();
            }
            self.job.forget_edits(std::mem::take(&mut edits).len());
        };
        stop.trust_lease_until(lease.trusted_until(sent));
        let is_open = |id: &Uuid| lease.requests.iter().any(|request| request.id == *id);
        shared.remove_answered(open_requests.into_iter().filter(|id| !is_open(id)));
        let mut snapshot = JobSnapshot {
            state: lease.state.clone(),
            claim_hint: lease.claim_hint.take(),
            pauses: std::mem::take(&mut lease.pauses),
            requests: std::mem::take(&mut lease.requests),
        };
        let CycleEnd { next, released } = self.run_actions(Some(&lease), &stop, &mut snapshot).await;
        if !released {
            lease.claim_hint = released_hint(spec, &snapshot);
            if let Err(error) = shared.store.release(&lease).await {
                warn!(job.name = %spec.name, %error, "cannot release the lease of job `{}`: {error}", spec.name);
                return next;
            }
        }
        self.job.forget_edits(edits.len());
        self.job.note_left_hint(spec);
        match snapshot.pauses.iter().find(|pause| pause.until.is_none()) {
            Some(pause) if !shared.note_pause(&spec.name, pause, revision) => {
                next.earlier((shared.clock.now() + TICK_INTERVAL).into())
            }
            _ => next,
        }
    }

    /// Leaves the claim hint of a job that was removed: if it is added again, the scheduled times between were not due, also if the
    /// store was unavailable for a while.
    async fn retire(&self) -> NextWakeup {
        let (shared, spec) = (&self.shared, self.spec());
        let (now, edits) = (shared.clock.now(), &self.definition.edits);
        let removed = |hint: &_, state: &_| hint_of_removed_job(hint, state, edits, now);
        if spec.scope == Scope::Node {
            self.job.update_local(|local| {
                if let Some((state, Some(hint))) = &mut local.schedule {
                    *hint = removed(hint, state);
                }
            });
        } else {
            let claim = shared.store.acquire(&spec.name, first_cursor(spec, now)).await;
            let Ok(Claim::Held(mut lease)) = claim else {
                return (now + TICK_INTERVAL).into();
            };
            lease.claim_hint = lease.claim_hint.as_ref().map(|hint| removed(hint, &lease.state));
            if shared.store.release(&lease).await.is_err() {
                return (now + TICK_INTERVAL).into();
            }
        }
        self.job.forget_edits(edits.len());
        NEVER.into()
    }

    /// Runs a job of this node, which needs no lease.
    async fn run_node_cycle(&self) -> NextWakeup {
        let (shared, job, spec) = (&self.shared, &self.job, self.spec());
        let began = shared.clock.now();
        // The job may have been added after the pause.
        let pause =
            lock(&shared.control_state).as_ref().and_then(|state| state.pause_of(&spec.name).cloned());
        job.update_local(|local| local.record_pause(pause.as_ref(), began));
        let (state, claim_hint) = job
            .update_local(|local| local.schedule.take())
            .unwrap_or_else(|| (JobState::at(first_cursor(spec, began)), None));
        let edits = &self.definition.edits;
        let claim_hint = claim_hint.map(|hint| edited_hint(spec, &hint, edits, began).unwrap_or(hint));
        job.forget_edits(edits.len());
        let pauses = job.update_local(|local| {
            local.pauses.retain(|pause| pause.until.is_none_or(|until| state.cursor < until));
            local.pauses.clone()
        });
        let mut snapshot = JobSnapshot { state, claim_hint, pauses, requests: Vec::new() };
        let CycleEnd { next, .. } = self.run_actions(None, &StopHandle::new(), &mut snapshot).await;
        let hint = hint_for_release(spec, &snapshot);
        job.update_local(|local| local.schedule = Some((snapshot.state, Some(hint))));
        next
    }

    async fn run_actions(
        &self,
        lease: Option<&Lease>,
        stop: &StopHandle,
        snapshot: &mut JobSnapshot,
    ) -> CycleEnd {
        let shared = &self.shared;
        shared.add_running(&self.job, lease, stop);
        let end = Actions::new(self, lease, stop, snapshot).run().await;
        lock(&shared.running).remove(&self.job.index());
        match end {
            Ok(end) => {
                self.job.reset_store_failures();
                end
            }
            Err(error) => {
                // The renewal may have reported it.
                if let StoreError::LeaseLost { job, fencing_token } = &error
                    && stop.requested(StopReason::LeaseLost).now_or_never().is_none()
                {
                    shared.surroundings.events.emit_lost(job, *fencing_token);
                }
                shared.store_failed(&self.job, &error).into()
            }
        }
    }
}

impl Drop for LeaseCycle {
    /// Ends the cycle, also after a panic.
    fn drop(&mut self) {
        lock(&self.shared.running).remove(&self.job.index());
        {
            let mut due_queue = lock(&self.shared.due_queue);
            due_queue.put(self.job.index(), self.next.at);
            if *self.holds_late_slot.get_mut() {
                due_queue.release_late_slot();
            }
        }
        if self.next.is_instant {
            self.shared.arm_next(self.job.index());
        }
        self.shared.arm_late();
    }
}

impl Shared {
    /// Lists a lease cycle among those whose run can be stopped.
    pub(super) fn add_running(&self, job: &Arc<ScheduledJob>, lease: Option<&Lease>, stop: &StopHandle) {
        let running = Running {
            job: Arc::clone(job),
            stop: stop.clone(),
            lease: lease.cloned(),
            cancelled: None,
            followed_at: None,
        };
        lock(&self.running).insert(job.index(), running);
        if let Some(lease) = lease {
            self.cancel_known(lease);
        }
    }

    /// Waits for the end of a run that was abandoned. Other processes may claim the job meanwhile; this process does not run it,
    /// because a job that never returns its threads would otherwise use up all of them.
    pub(super) async fn wait_for_abandoned(&self, name: &str, abandoned: RunTask) {
        let mut ended = pin!(abandoned.ended());
        tokio::select! {
            biased;
            () = &mut ended => {}
            () = self.clock.sleep(Duration::from_secs(1)) => {
                error!(job.name = %name, "job `{name}` does not stop: this process will not run it until it stops");
                ended.await;
                warn!(job.name = %name, "job `{name}` has stopped and runs again");
            }
        }
    }

    /// Logs a failed request to the store; returns when to try again.
    fn store_failed(&self, job: &ScheduledJob, error: &StoreError) -> DateTime<Utc> {
        let name = &job.name;
        let failures = job.update_local(|local| {
            local.store_failures += 1;
            local.store_failures - 1
        });
        let longest = if lock(&self.poll_state).failed { MAX_OUTAGE_BACKOFF } else { MAX_STORE_BACKOFF };
        let wait = (TICK_INTERVAL * 2_i32.pow(failures.min(5))).min(longest);
        match error {
            StoreError::LeaseLost { .. }
            | StoreError::AlreadyFinished { .. }
            | StoreError::UnknownJob { .. } => {
                warn!(job.name = %name, %error, "{error}: another daemon continues it");
            }
            StoreError::Unavailable(_) => {
                error!(job.name = %name, %error, "job `{name}` cannot reach its store, retrying in {} s: {error}", wait.num_seconds());
            }
        }
        self.clock.now() + wait
    }
}
