//! What happens to the jobs of a scheduler, for listeners in the same process.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::stream::{Stream, unfold};
use tokio::sync::broadcast::{
    self,
    error::RecvError::{Closed, Lagged},
};
use uuid::Uuid;

use super::{scheduler::Scheduler, shared::Shared};
use crate::{
    job::{FencingToken, Occurrence},
    runtime::store::{RunRecord, RunStatus},
};

/// The number of events that wait for a slow listener.
const BUFFER: usize = 1_024;

/// Something that happened to a job in this process. An event with a [`RunRecord`] follows its write to the store.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The job waits for its next start: a scheduled time with its jitter, or a retry.
    Scheduled {
        /// The job's name.
        job: String,
        /// When it starts, unless its configuration or a request changes that.
        at: DateTime<Utc>,
    },
    /// An attempt starts.
    Started {
        /// The job's name and the scheduled time.
        occurrence: Occurrence,
        /// The number of the attempt, from 1.
        attempt: u32,
        /// The id of the run's record.
        run_id: Uuid,
    },
    /// A run finished: [`RunStatus::Done`].
    Finished(Arc<RunRecord>),
    /// An attempt failed and is retried.
    Retrying(Arc<RunRecord>),
    /// The last attempt failed: [`RunStatus::Dead`].
    Failed(Arc<RunRecord>),
    /// A run stopped before its end.
    Interrupted(Arc<RunRecord>),
    /// The misfire policy skipped scheduled times.
    Skipped(Arc<RunRecord>),
    /// No process ran the job within the misfire grace.
    Missed(Arc<RunRecord>),
    /// Scheduled times passed during a pause of the job.
    Paused(Arc<RunRecord>),
    /// Times of an edited schedule were never due.
    Rescheduled(Arc<RunRecord>),
    /// Another process may run the job, because this one did not renew its lease in time.
    LeaseLost {
        /// The job's name.
        job: String,
        /// The fencing token of the lost lease.
        fencing_token: FencingToken,
    },
    /// The listener was too slow: the oldest events of its buffer were dropped.
    Lagged {
        /// The number of dropped events.
        dropped: u64,
    },
}

/// The events of a scheduler from [`Scheduler::events`] on.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// Waits for the next event; `None` after the last copy of the scheduler was dropped.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(Lagged(dropped)) => Some(Event::Lagged { dropped }),
            Err(Closed) => None,
        }
    }

    /// Returns the events as a [`Stream`], for combinators.
    pub fn into_stream(self) -> impl Stream<Item = Event> + Send {
        unfold(self, async |mut events| Some((events.next().await?, events)))
    }
}

impl Scheduler {
    /// Returns the events of all jobs in this process from now on. A listener that is more than 1,024 events behind loses the oldest
    /// ones, and never delays a job.
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
        Events(self.shared.events.get_or_init(|| broadcast::Sender::new(BUFFER)).subscribe())
    }
}

impl Shared {
    /// Sends an event, if there is a listener.
    pub(super) fn emit(&self, event: impl FnOnce() -> Event) {
        if let Some(events) = self.events.get().filter(|events| events.receiver_count() > 0) {
            // The last listener may have left meanwhile.
            let _ = events.send(event());
        }
    }

    /// Sends the event of a written record.
    pub(super) fn emit_record(&self, record: &RunRecord) {
        self.emit(|| {
            let run = Arc::new(record.clone());
            match record.status {
                RunStatus::Done => Event::Finished(run),
                RunStatus::Retrying => Event::Retrying(run),
                RunStatus::Dead => Event::Failed(run),
                RunStatus::Interrupted => Event::Interrupted(run),
                RunStatus::Skipped => Event::Skipped(run),
                RunStatus::Missed => Event::Missed(run),
                RunStatus::Paused => Event::Paused(run),
                RunStatus::Rescheduled => Event::Rescheduled(run),
            }
        });
    }

    /// Sends the event of a lost lease.
    pub(super) fn emit_lost(&self, job: &str, fencing_token: FencingToken) {
        self.emit(|| Event::LeaseLost { job: job.to_owned(), fencing_token });
    }
}
