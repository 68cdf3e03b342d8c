//! The jobs of a scheduler, by their numbers and by their names.

use std::{borrow::Borrow, collections::HashSet, hash, sync::Arc};

use chrono::{DateTime, Utc};

use super::scheduled_job::{Definition, ScheduledJob};
use crate::runtime::{decide::JobSpec, interner::Interner};

/// The jobs, those that were removed included. A job's number is its place.
#[derive(Default)]
pub(super) struct JobList {
    jobs: Vec<Arc<ScheduledJob>>,
    by_name: HashSet<ByName>,
    settings: Interner<JobSpec>,
}

/// A job that is equal to another one with the same name.
struct ByName(Arc<ScheduledJob>);

impl JobList {
    pub(super) fn find(&self, name: &str) -> Option<&Arc<ScheduledJob>> {
        self.by_name.get(name).map(|ByName(job)| job)
    }

    /// Adds a job in the place of its number: at the end, or in that of a job that was removed.
    pub(super) fn add(&mut self, index: usize, definition: Definition) -> Arc<ScheduledJob> {
        let job = Arc::new(ScheduledJob::new(index, definition, &mut self.settings));
        if let Some(place) = self.jobs.get_mut(index) {
            let before = std::mem::replace(place, Arc::clone(&job));
            self.by_name.remove(&*before.name);
            before.release_settings(&mut self.settings);
        } else {
            self.jobs.push(Arc::clone(&job));
        }
        self.by_name.insert(ByName(Arc::clone(&job)));
        job
    }

    /// Replaces the definition of `job` at the time `now` by another one with the same name. Returns whether the job was removed before.
    pub(super) fn redefine(
        &mut self,
        job: &ScheduledJob,
        definition: Definition,
        now: DateTime<Utc>,
    ) -> bool {
        job.define(definition, &mut self.settings, now)
    }
}

impl std::ops::Deref for JobList {
    type Target = [Arc<ScheduledJob>];

    fn deref(&self) -> &Self::Target {
        &self.jobs
    }
}

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        &self.0.name
    }
}

impl hash::Hash for ByName {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ByName {}
