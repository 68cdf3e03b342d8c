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
        decide::{JobSpec, Scope},
        executor::AbandonedRun,
        store::{ClaimHint, JobState, Pause},
    },
};

pub(super) struct ScheduledJob {
    pub(super) name: String,
    /// The job's number in the list of jobs and in the due queue.
    pub(super) index: usize,
    pub(super) definition: Mutex<Arc<Definition>>,
    /// Whether the configuration no longer contains the job.
    pub(super) removed: AtomicBool,
    /// `None` for most jobs: a process may have very many.
    pub(super) local: Mutex<Option<Box<LocalState>>>,
}

/// A job as its configuration defines it. A run keeps the definition that it started with.
pub(super) struct Definition {
    pub(super) spec: JobSpec,
    pub(super) params: serde_json::Value,
    pub(super) job: Arc<dyn Job>,
    /// Whether the store has the claim hint of this definition, so that a paused job needs no claim.
    pub(super) has_left_hint: AtomicBool,
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
    /// A run that did not stop and may still exist.
    pub(super) abandoned: Option<AbandonedRun>,
}

impl ScheduledJob {
    pub(super) fn new(index: usize, definition: Definition) -> Self {
        Self {
            name: definition.spec.name.clone(),
            index,
            definition: Mutex::new(Arc::new(definition)),
            removed: AtomicBool::new(false),
            local: Mutex::default(),
        }
    }

    pub(super) fn update_local<T>(&self, change: impl FnOnce(&mut LocalState) -> T) -> T {
        change(lock(&self.local).get_or_insert_default())
    }

    pub(super) fn take_abandoned(&self) -> Option<AbandonedRun> {
        lock(&self.local).as_mut()?.abandoned.take()
    }

    /// Resets the number of failed requests; returns whether there were any.
    pub(super) fn reset_store_failures(&self) -> bool {
        lock(&self.local).as_mut().is_some_and(|local| std::mem::take(&mut local.store_failures) > 0)
    }

    pub(super) fn definition(&self) -> Arc<Definition> {
        Arc::clone(&lock(&self.definition))
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    /// Whether the store's row shows if the job is late. A job that runs on every node may have left an old row.
    pub(super) fn has_store_state(&self) -> bool {
        !self.is_removed() && self.definition().spec.scope == Scope::Cluster
    }
}

impl Definition {
    pub(super) fn new(spec: JobSpec, params: serde_json::Value, job: Arc<dyn Job>) -> Self {
        Self { spec, params, job, has_left_hint: AtomicBool::new(false) }
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
