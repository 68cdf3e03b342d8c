//! Adding one job to the queue, directly or in a transaction of the application.

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

impl NewQueuedJob {
    /// Returns a job as [`NewQueuedJob::new`] does, with a payload of any type that serde can represent as JSON.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use billing_scheduler::{EnqueueError, NewQueuedJob};
    ///
    /// #[derive(serde::Serialize)]
    /// struct Mail {
    ///     to: String,
    /// }
    ///
    /// # fn main() -> Result<(), EnqueueError> {
    /// let mail = Mail { to: "ada@example.org".to_owned() };
    /// let job = NewQueuedJob::encode("mail", &mail)?.after(Duration::from_mins(10)).unique_by("ada");
    /// // In a transaction of the application: billing_store::queue::enqueue_in(&txn, &[job]).await?
    /// assert_eq!(job.payload, billing_scheduler::serde_json::json!({ "to": "ada@example.org" }));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The payload cannot be represented as JSON, such as a map whose keys are not strings.
    pub fn encode(kind: impl Into<String>, payload: impl Serialize) -> Result<Self, EnqueueError> {
        let kind = kind.into();
        match serde_json::to_value(payload) {
            Ok(payload) => Ok(Self::new(kind, payload)),
            Err(source) => Err(EnqueueError::Payload { kind, source }),
        }
    }

    /// Sets when the job is due.
    #[must_use]
    pub fn at(self, time: DateTime<Utc>) -> Self {
        Self { time: QueueTime::At(time), ..self }
    }

    /// Sets how long after it was added, by the store's clock, the job is due.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self { time: QueueTime::After(duration), ..self }
    }

    /// Adds the job only if no unfinished job of its kind has this key.
    #[must_use]
    pub fn unique_by(self, key: impl Into<String>) -> Self {
        Self { unique_key: Some(key.into()), ..self }
    }

    /// Sets the priority: jobs with a greater one are claimed first. The default is 0.
    #[must_use]
    pub fn priority(self, priority: i32) -> Self {
        Self { priority, ..self }
    }
}

impl Enqueue {
    pub(crate) fn new(queue: Option<Arc<Queue>>, kind: &str, payload: impl Serialize) -> Self {
        Self { job: NewQueuedJob::encode(kind, payload), queue }
    }

    fn change(self, change: impl FnOnce(NewQueuedJob) -> NewQueuedJob) -> Self {
        Self { job: self.job.map(change), ..self }
    }

    /// Sets when the job is due.
    pub fn at(self, time: DateTime<Utc>) -> Self {
        self.change(|job| job.at(time))
    }

    /// Sets how long after now, by the store's clock, the job is due.
    pub fn after(self, duration: Duration) -> Self {
        self.change(|job| job.after(duration))
    }

    /// Adds the job only if no unfinished job of its kind has this key.
    pub fn unique_by(self, key: impl Into<String>) -> Self {
        self.change(|job| job.unique_by(key))
    }

    /// Sets the priority: jobs with a greater one are claimed first. The default is 0.
    pub fn priority(self, priority: i32) -> Self {
        self.change(|job| job.priority(priority))
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
    queue.note_added(jobs);
    Ok(added)
}
