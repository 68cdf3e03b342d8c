//! A job of a scheduler: its definition, and the state that this process keeps about it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use chrono::{DateTime, Utc};

use super::shared::lock;
use crate::{
    job::Job,
    registry::{BuildError, Registry},
    runtime::{
        decide::{JobSpec, Scope, next_action::NO_SCHEDULE},
        executor::RunTask,
        interner::Interner,
        store::{ClaimHint, JobState, Pause, ReplacedSchedule},
    },
};

/// A process may have very many jobs, so one takes less than 100 bytes and its name.
pub(super) struct ScheduledJob {
    pub(super) name: Box<str>,
    index: u32,
    /// Whether the configuration no longer contains the job.
    removed: AtomicBool,
    /// Whether the store has the claim hint of the definition, so that a paused job needs no claim.
    pub(super) has_left_hint: AtomicBool,
    state: Mutex<State>,
}

struct State {
    /// The specification with an empty name. Jobs with equal settings share it.
    settings: Arc<JobSpec>,
    /// `None` if they are `null`.
    params: Option<Arc<serde_json::Value>>,
    job: Arc<dyn Job>,
    /// `None` for most jobs.
    local: Option<Box<LocalState>>,
}

/// A job as its configuration defines it. A run keeps the definition that it started with.
pub(super) struct Definition {
    pub(super) spec: JobSpec,
    pub(super) params: Option<Arc<serde_json::Value>>,
    pub(super) job: Arc<dyn Job>,
    /// The changes of the schedule that this process has not stored yet, oldest first.
    pub(super) edits: Vec<ReplacedSchedule>,
}

/// State of a job that only this process has.
#[derive(Default)]
pub(super) struct LocalState {
    /// The number of failed requests to the store in a row.
    pub(super) store_failures: u32,
    /// The schedule's position, for a job that runs on every node.
    pub(super) schedule: Option<(JobState, Option<ClaimHint>)>,
    /// The pauses since the process started, for a job that runs on every node.
    pub(super) pauses: Vec<Pause>,
    /// The changes of the schedule that are not stored yet, oldest first.
    edits: Vec<ReplacedSchedule>,
    /// A run that did not stop and may still exist.
    pub(super) abandoned: Option<RunTask>,
}

impl ScheduledJob {
    pub(super) fn new(index: usize, definition: Definition, all_settings: &mut Interner<JobSpec>) -> Self {
        let Definition { mut spec, params, job, .. } = definition;
        let name = std::mem::take(&mut spec.name).into_boxed_str();
        let settings = all_settings.intern(&spec);
        Self {
            name,
            index: u32::try_from(index).expect("a process has fewer than four billion jobs"),
            removed: AtomicBool::new(false),
            has_left_hint: AtomicBool::new(false),
            state: Mutex::new(State { settings, params, job, local: None }),
        }
    }

    /// The job's number in the list of jobs and in the due queue.
    pub(super) fn index(&self) -> usize {
        self.index as usize
    }

    /// Replaces the definition at the time `now` by another one with the same name. Returns whether the job was removed before.
    pub(super) fn define(
        &self,
        definition: Definition,
        all_settings: &mut Interner<JobSpec>,
        now: DateTime<Utc>,
    ) -> bool {
        let Definition { mut spec, params, job, .. } = definition;
        spec.name.clear();
        let settings = all_settings.intern(&spec);
        let was_removed = self.removed.swap(false, Ordering::SeqCst);
        let mut state = lock(&self.state);
        let before = std::mem::replace(&mut state.settings, settings);
        (state.params, state.job) = (params, job);
        if was_removed {
            state.end_schedule(NO_SCHEDULE.to_owned(), now);
        } else if before.schedule != spec.schedule {
            state.end_schedule(before.schedule.to_string(), now);
        }
        all_settings.release(&before);
        self.has_left_hint.store(false, Ordering::SeqCst);
        was_removed
    }

    /// Ends the use of its settings, because the job is no longer in the list.
    pub(super) fn release_settings(&self, all_settings: &mut Interner<JobSpec>) {
        all_settings.release(&lock(&self.state).settings);
    }

    /// Forgets the oldest changes of the schedule, because they are stored.
    pub(super) fn forget_edits(&self, stored: usize) {
        if stored > 0 {
            self.update_local(|local| drop(local.edits.drain(..stored.min(local.edits.len()))));
        }
    }

    /// Notes that the store has the claim hint of a specification, unless another one is in force by now.
    pub(super) fn note_left_hint(&self, spec: &JobSpec) {
        if self.has_left_hint.load(Ordering::SeqCst) {
            return;
        }
        let state = lock(&self.state);
        if *state.settings == (JobSpec { name: String::new(), ..spec.clone() }) {
            self.has_left_hint.store(true, Ordering::SeqCst);
        }
    }

    pub(super) fn update_local<T>(&self, change: impl FnOnce(&mut LocalState) -> T) -> T {
        change(lock(&self.state).local.get_or_insert_default())
    }

    pub(super) fn take_abandoned(&self) -> Option<RunTask> {
        lock(&self.state).local.as_mut()?.abandoned.take()
    }

    /// Resets the number of failed requests; returns whether there were any.
    pub(super) fn reset_store_failures(&self) -> bool {
        let local = &mut lock(&self.state).local;
        local.as_mut().is_some_and(|local| std::mem::take(&mut local.store_failures) > 0)
    }

    pub(super) fn definition(&self) -> Definition {
        let State { settings, params, job, local } = &*lock(&self.state);
        let spec = JobSpec { name: self.name.to_string(), ..JobSpec::clone(settings) };
        let edits = local.as_ref().map_or_else(Vec::new, |local| local.edits.clone());
        Definition { spec, params: params.clone(), job: Arc::clone(job), edits }
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    /// Notes that the configuration does not contain the job from `now` on.
    pub(super) fn remove(&self, now: DateTime<Utc>) {
        let mut state = lock(&self.state);
        let schedule = state.settings.schedule.to_string();
        state.end_schedule(schedule, now);
        self.removed.store(true, Ordering::SeqCst);
    }

    /// Whether the store's row shows if the job is late. A job that runs on every node may have left an old row.
    pub(super) fn has_store_state(&self) -> bool {
        !self.is_removed() && lock(&self.state).settings.scope == Scope::Cluster
    }
}

impl State {
    fn end_schedule(&mut self, schedule: String, until: DateTime<Utc>) {
        self.local.get_or_insert_default().edits.push(ReplacedSchedule { schedule, until });
    }
}

/// The parameters of a job without any.
static NO_PARAMS: serde_json::Value = serde_json::Value::Null;

impl Definition {
    pub(super) fn new(spec: JobSpec, params: serde_json::Value, job: Arc<dyn Job>) -> Self {
        let params = Some(params).filter(|params| !params.is_null()).map(Arc::new);
        Self { spec, params, job, edits: Vec::new() }
    }

    pub(super) fn params(&self) -> &serde_json::Value {
        self.params.as_deref().unwrap_or(&NO_PARAMS)
    }

    pub(super) fn build(
        registry: &Registry,
        spec: JobSpec,
        params: serde_json::Value,
    ) -> Result<Self, BuildError> {
        let job = registry.build(&spec.kind, params.clone())?;
        Ok(Self::new(spec, params, job))
    }
}

impl LocalState {
    /// Records when a pause begins and ends. The store keeps no pauses for a job without a lease.
    pub(super) fn record_pause(&mut self, paused: Option<&Pause>, now: DateTime<Utc>) {
        let open = self.pauses.iter_mut().find(|pause| pause.until.is_none());
        match (open, paused) {
            (Some(open), None) => open.until = Some(now),
            (None, Some(pause)) => self.pauses.push(pause.clone()),
            (Some(open), Some(pause)) => *open = pause.clone(),
            (None, None) => {}
        }
    }
}

#[cfg(all(test, target_pointer_width = "64"))]
mod tests {
    use super::*;

    #[test]
    fn scheduled_jobs_stay_small() {
        // With the counts of its Arc and the header of an allocation, 96 bytes.
        let bytes = size_of::<ScheduledJob>();
        assert!(bytes <= 72, "a job takes {bytes} bytes");
    }
}
