//! A job as a scheduler keeps it: what its configuration says, and what is remembered between two looks at it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use chrono::{DateTime, Utc};

use super::{executor::AbandonedRun, shared::lock};
use crate::{
    job::Job,
    registry::{BuildError, Registry},
    runtime::{
        decide::{JobSpec, Scope},
        store::{ClaimHint, JobState, Pause},
    },
};

pub(super) struct ScheduledJob {
    pub(super) name: String,
    /// In the entries and in the agenda.
    pub(super) index: usize,
    pub(super) definition: Mutex<Arc<Definition>>,
    /// The configuration does not have it any more.
    pub(super) removed: AtomicBool,
    pub(super) local: Mutex<Option<Box<LocalState>>>,
}

/// What a configuration says about a job. A run keeps the one that it began with.
pub(super) struct Definition {
    pub(super) spec: JobSpec,
    pub(super) params: serde_json::Value,
    pub(super) job: Arc<dyn Job>,
}

/// What is remembered between two looks at a job.
#[derive(Default)]
pub(super) struct LocalState {
    /// How many times in a row the store failed.
    pub(super) store_failures: u32,
    /// Where the schedule stands, for a job that each node runs by itself.
    pub(super) local: Option<(JobState, Option<ClaimHint>)>,
    /// When it was paused since this process runs.
    pub(super) pauses: Vec<Pause>,
    /// A run that was given up and may still be there.
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

    /// Most jobs have nothing to remember, and many jobs have much memory.
    pub(super) fn update_local<T>(&self, change: impl FnOnce(&mut LocalState) -> T) -> T {
        change(lock(&self.local).get_or_insert_default())
    }

    pub(super) fn definition(&self) -> Arc<Definition> {
        Arc::clone(&lock(&self.definition))
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    /// Whether the store's row tells how it stands: a job that each node runs by itself may have left one behind.
    pub(super) fn is_expected_of_the_store(&self) -> bool {
        !self.is_removed() && self.definition().spec.scope == Scope::Cluster
    }
}

impl Definition {
    pub(super) fn build(
        registry: &Registry,
        spec: JobSpec,
        params: serde_json::Value,
    ) -> Result<Self, BuildError> {
        let job = registry.build(&spec.kind, params.clone())?;
        Ok(Self { spec, params, job })
    }
}

impl LocalState {
    /// A node's own memory of the pauses of its jobs: without a lease, nobody else remembers for it.
    pub(super) fn remember_pause(&mut self, paused: Option<&Pause>, now: DateTime<Utc>) {
        let open = self.pauses.iter_mut().find(|pause| pause.until.is_none());
        match (open, paused) {
            (Some(open), None) => open.until = Some(now),
            (None, Some(pause)) => self.pauses.push(pause.clone()),
            (Some(open), Some(pause)) => *open = pause.clone(),
            (None, None) => {}
        }
    }
}
