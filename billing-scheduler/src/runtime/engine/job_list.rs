//! The jobs of a scheduler, by their numbers and by their names.

use std::{borrow::Borrow, collections::HashSet, hash, sync::Arc};

use super::scheduled_job::ScheduledJob;

/// The jobs, those that were removed included. A job's number is its place.
#[derive(Default)]
pub(super) struct JobList {
    jobs: Vec<Arc<ScheduledJob>>,
    by_name: HashSet<ByName>,
}

/// A job that is equal to another one with the same name.
struct ByName(Arc<ScheduledJob>);

impl JobList {
    pub(super) fn find(&self, name: &str) -> Option<&Arc<ScheduledJob>> {
        self.by_name.get(name).map(|ByName(job)| job)
    }

    /// Puts a job in its place: at the end, or in that of a job that was removed.
    pub(super) fn put(&mut self, job: &Arc<ScheduledJob>) {
        if let Some(place) = self.jobs.get_mut(job.index) {
            let before = std::mem::replace(place, Arc::clone(job));
            self.by_name.remove(before.name.as_str());
        } else {
            self.jobs.push(Arc::clone(job));
        }
        self.by_name.insert(ByName(Arc::clone(job)));
    }
}

impl FromIterator<Arc<ScheduledJob>> for JobList {
    #[expect(clippy::mutable_key_type, reason = "the hash is that of the name, which does not change")]
    fn from_iter<T: IntoIterator<Item = Arc<ScheduledJob>>>(jobs: T) -> Self {
        let jobs: Vec<_> = jobs.into_iter().collect();
        let by_name = jobs.iter().map(|job| ByName(Arc::clone(job))).collect();
        Self { jobs, by_name }
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
