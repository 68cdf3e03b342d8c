//! What a scheduler offers next to scheduled jobs: the queue of one-off jobs, and events.

use std::sync::Arc;

use serde::Serialize;
use tracing::warn;
use uuid::Uuid;

use super::scheduler::Scheduler;
use crate::runtime::{
    events::Events,
    queue::{Enqueue, EnqueueError, Queue, enqueue_all},
    store::NewQueuedJob,
};

impl Scheduler {
    /// Returns a one-off job to add, which is due immediately unless a time is set. A process that runs its kind, which may be another
    /// one, executes it once or, after a crash, again: see [`SchedulerBuilder::queue_job`](crate::SchedulerBuilder::queue_job).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use billing_scheduler::{BoxError, Scheduler};
    /// # async fn add(scheduler: &Scheduler) -> Result<(), BoxError> {
    /// scheduler.enqueue("mail", "ada@example.org").await?;
    /// scheduler.enqueue("mail", "bob@example.org").after(Duration::from_hours(1)).unique_by("bob").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn enqueue(&self, kind: &str, payload: impl Serialize) -> Enqueue {
        Enqueue::new(self.shared.queue.clone(), kind, payload)
    }

    /// Adds many one-off jobs in one transaction, and returns the ids of those that were added.
    ///
    /// # Errors
    /// The store has no queue, or it failed: then the call can be repeated, because an id is added once.
    pub async fn enqueue_all(&self, jobs: &[NewQueuedJob]) -> Result<Vec<Uuid>, EnqueueError> {
        enqueue_all(self.shared.queue.as_deref(), jobs).await
    }

    /// Runs the queued jobs that are due, and returns the number of runs.
    pub(crate) async fn run_queued(&self) -> usize {
        let Some(queue) = &self.shared.queue else { return 0 };
        queue.run_due().await.unwrap_or_else(|error| {
            warn!("cannot run queued jobs: {error}");
            0
        })
    }

    /// Returns the queue, if this process runs its jobs.
    pub(crate) fn working_queue(&self) -> Option<Arc<Queue>> {
        self.shared.queue.clone().filter(|queue| queue.has_kinds())
    }

    /// Returns the events of all jobs in this process from now on, scheduled and queued. A listener that is more than 1,024 events behind
    /// loses the oldest ones, and never delays a job.
    ///
    /// ```
    /// # use billing_scheduler::{Event, Scheduler};
    /// # async fn listen(scheduler: &Scheduler) {
    /// let mut events = scheduler.events();
    /// while let Some(event) = events.next().await {
    ///     if let Event::Failed(run) = event {
    ///         eprintln!("{} failed: {}", run.job, run.error.as_deref().unwrap_or_default());
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn events(&self) -> Events {
        self.shared.surroundings.events.subscribe()
    }
}
