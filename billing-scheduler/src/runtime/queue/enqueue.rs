//! Adding one job to the queue.

use std::{future::IntoFuture, pin::Pin, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::worker::Queue;
use crate::runtime::store::{NewQueuedJob, QueueTime, StoreError};

/// A job that is added when this is awaited: see [`Scheduler::enqueue`](crate::Scheduler::enqueue).
#[must_use = "the job is added when this is awaited"]
pub struct Enqueue {
    job: Result<NewQueuedJob, EnqueueError>,
    queue: Option<Arc<Queue>>,
}

/// Why a job cannot be added to the queue.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// The payload cannot be represented as JSON.
    #[error("cannot encode the payload of a job of kind `{kind}`: {source}")]
    Payload {
        /// The kind of the job.
        kind: String,
        /// What cannot be represented.
        source: serde_json::Error,
    },
    /// [`Store::queue`](crate::Store::queue) returned `None`.
    #[error("the store has no queue")]
    NoQueue,
    /// The store failed. The job may have been added.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Enqueue {
    pub(crate) fn new(queue: Option<Arc<Queue>>, kind: &str, payload: impl Serialize) -> Self {
        let payload = serde_json::to_value(payload);
        let job = payload.map(|payload| NewQueuedJob::new(kind, payload));
        Self { job: job.map_err(|source| EnqueueError::Payload { kind: kind.to_owned(), source }), queue }
    }

    fn change(mut self, change: impl FnOnce(&mut NewQueuedJob)) -> Self {
        self.job.as_mut().map(change).ok();
        self
    }

    /// Sets when the job is due.
    pub fn at(self, time: DateTime<Utc>) -> Self {
        self.change(|job| job.time = QueueTime::At(time))
    }

    /// Sets how long after now, by the store's clock, the job is due.
    pub fn after(self, duration: Duration) -> Self {
        self.change(|job| job.time = QueueTime::After(duration))
    }

    /// Adds the job only if no unfinished job of its kind has this key.
    pub fn unique_by(self, key: impl Into<String>) -> Self {
        self.change(|job| job.unique_key = Some(key.into()))
    }

    /// Sets the priority: jobs with a greater one are claimed first. The default is 0.
    pub fn priority(self, priority: i32) -> Self {
        self.change(|job| job.priority = priority)
    }
}

impl IntoFuture for Enqueue {
    /// The job's id, or `None` if an unfinished job has its unique key.
    type Output = Result<Option<Uuid>, EnqueueError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let job = self.job?;
            let added = enqueue_all(self.queue.as_deref(), &[job]).await?;
            Ok(added.first().copied())
        })
    }
}

/// Adds jobs in one transaction, and wakes the worker.
pub(crate) async fn enqueue_all(
    queue: Option<&Queue>,
    jobs: &[NewQueuedJob],
) -> Result<Vec<Uuid>, EnqueueError> {
    let queue = queue.ok_or(EnqueueError::NoQueue)?;
    let added = queue.store.enqueue(jobs).await?;
    queue.added.notify_one();
    Ok(added)
}
