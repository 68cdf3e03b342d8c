//! Adding one job to the queue.

use std::{future::IntoFuture, pin::Pin, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use uuid::Uuid;

use super::store::{NewQueuedJob, QueueStore, QueueTime};
use crate::runtime::store::StoreError;

/// A job that is added when this is awaited: see [`Queue::enqueue`](crate::Queue::enqueue).
#[must_use = "the job is added when this is awaited"]
pub struct Enqueue {
    job: NewQueuedJob,
    store: Arc<dyn QueueStore>,
    added: Arc<Notify>,
}

impl Enqueue {
    pub(super) fn new(job: NewQueuedJob, store: Arc<dyn QueueStore>, added: Arc<Notify>) -> Self {
        Self { job, store, added }
    }

    /// Sets when the job is due.
    pub fn at(mut self, time: DateTime<Utc>) -> Self {
        self.job.time = QueueTime::At(time);
        self
    }

    /// Sets how long after now, by the store's clock, the job is due.
    pub fn after(mut self, duration: Duration) -> Self {
        self.job.time = QueueTime::After(duration);
        self
    }

    /// Adds the job only if no unfinished job of its kind has this key.
    pub fn unique_by(mut self, key: impl Into<String>) -> Self {
        self.job.unique_key = Some(key.into());
        self
    }

    /// Sets the priority: jobs with a greater one are claimed first. The default is 0.
    pub fn priority(mut self, priority: i32) -> Self {
        self.job.priority = priority;
        self
    }
}

impl IntoFuture for Enqueue {
    /// The job's id, or `None` if an unfinished job has its unique key.
    type Output = Result<Option<Uuid>, StoreError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let added = self.store.enqueue(&[self.job]).await?;
            self.added.notify_one();
            Ok(added.first().copied())
        })
    }
}
