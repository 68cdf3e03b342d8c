//! What happens to jobs, for listeners in the same process.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::stream::{Stream, unfold};
use tokio::sync::broadcast::{
    self,
    error::RecvError::{Closed, Lagged},
};
use uuid::Uuid;

use super::store::{RunRecord, RunStatus};
use crate::job::{FencingToken, Occurrence};

/// The number of events that wait for a slow listener.
const BUFFER: usize = 1_024;

/// Something that happened to a job in this process. An event with a [`RunRecord`] follows its write to the store. The name of a queued
/// job is its kind, and its record has the cause [`RunCause::Queue`](crate::RunCause::Queue).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The job waits for its next start: a scheduled time with its jitter, or a retry. Queued jobs have no such event.
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
    /// Another process may run the job, because this one did not renew its lease, or its claim of the queued job, in time.
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

/// One line, such as "retrying `mail` of 2026-01-05T14:00:01Z, attempt 1: no connection".
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, run) = match self {
            Self::Scheduled { job, at } => {
                return write!(
                    f,
                    "scheduled `{job}` for {}",
                    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
                );
            }
            Self::Started { occurrence, attempt, .. } => {
                return write!(f, "started {occurrence}, attempt {attempt}");
            }
            Self::LeaseLost { job, fencing_token } => {
                return write!(f, "lost the lease of `{job}` under fencing token {fencing_token}");
            }
            Self::Lagged { dropped } => {
                return write!(f, "dropped {dropped} events: the listener is too slow");
            }
            Self::Finished(run) => ("finished", run),
            Self::Retrying(run) => ("retrying", run),
            Self::Failed(run) => ("failed", run),
            Self::Interrupted(run) => ("interrupted", run),
            Self::Skipped(run) => ("skipped", run),
            Self::Missed(run) => ("missed", run),
            Self::Paused(run) => ("paused", run),
            Self::Rescheduled(run) => ("rescheduled", run),
        };
        write!(f, "{what} {}", Occurrence { job: run.job.clone(), scheduled_at: run.scheduled_at })?;
        if let Some(range) = run.range {
            let from = range.from.to_rfc3339_opts(SecondsFormat::Secs, true);
            write!(f, " and earlier times since {from}, {} in total", range.count)?;
        } else if run.status.has_run() {
            write!(f, ", attempt {}", run.attempt)?;
        }
        run.error.iter().chain(&run.reason).try_for_each(|cause| write!(f, ": {cause}"))
    }
}

/// The events of a scheduler from [`Scheduler::events`](crate::Scheduler::events) on.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// Waits for the next event; `None` after the last copy of the scheduler was dropped. A shutdown does not end the events while the
    /// application has a copy, such as the state of a web server: then do not wait for the end of a task that listens.
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

/// Sends events to listeners, of which most schedulers have none.
#[derive(Default)]
pub(crate) struct EventSender(OnceLock<broadcast::Sender<Event>>);

impl EventSender {
    pub(crate) fn subscribe(&self) -> Events {
        Events(self.0.get_or_init(|| broadcast::Sender::new(BUFFER)).subscribe())
    }

    /// Sends an event, if there is a listener.
    pub(crate) fn emit(&self, event: impl FnOnce() -> Event) {
        if let Some(events) = self.0.get().filter(|events| events.receiver_count() > 0) {
            // The last listener may have left meanwhile.
            let _ = events.send(event());
        }
    }

    /// Sends the event of a written record.
    pub(crate) fn emit_record(&self, record: &RunRecord) {
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

    /// Sends the event of a lost lease or claim.
    pub(crate) fn emit_lost(&self, job: &str, fencing_token: FencingToken) {
        self.emit(|| Event::LeaseLost { job: job.to_owned(), fencing_token });
    }
}
