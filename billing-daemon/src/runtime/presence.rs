//! What every daemon does each minute, with or without a heartbeat job: it reports that it runs, for `status`, `doctor` and `jobs trigger`,
//! and checks that the database has not lost a committed batch. The panel reads only heartbeats, which this does not write.

use std::{fmt::Display, sync::Arc, time::Duration};

use billing_jobs::{
    daemon_status::StatusRow,
    restore_detection::{RestoreDetection, RestoreError},
};
use tokio::{sync::oneshot, task::JoinHandle};
use tracing::{debug, warn};

/// How often the row is written, by this task unless a heartbeat does. A daemon whose row is older than two and a half intervals counts as dead.
const INTERVAL: Duration = Duration::from_mins(1);
/// How long a write in progress may delay the shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A task that writes the row of this process and checks the database until it is stopped.
pub(crate) struct Presence {
    stop: oneshot::Sender<()>,
    failure: oneshot::Receiver<RestoreError>,
    task: JoinHandle<()>,
}

impl Presence {
    /// Writes `status` and checks `restores` every minute. With a heartbeat job, which writes the row at the start, the first write is a
    /// minute away; the first check is immediate.
    pub(crate) fn start(
        status: Arc<StatusRow>,
        restores: Arc<RestoreDetection>,
        has_heartbeat: bool,
    ) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let (failed, failure) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut writes = !has_heartbeat;
            let (mut checks, mut reports) = (Failures::default(), Failures::default());
            loop {
                match restores.check().await {
                    Err(error @ RestoreError::FileReplaced(_)) => {
                        // Without a receiver the daemon is stopping already.
                        let _ = failed.send(error);
                        return;
                    }
                    checked => checks.note(checked),
                }
                if std::mem::replace(&mut writes, true) {
                    let written = status.present(INTERVAL).await;
                    reports.note(
                        written.map_err(|error| format!("cannot report that this daemon runs: {error}")),
                    );
                }
                tokio::select! {
                    _ = &mut stopped => return,
                    // The next check reports it.
                    () = restores.file_replaced() => {}
                    () = tokio::time::sleep(INTERVAL) => {}
                }
            }
        });
        Self { stop, failure, task }
    }

    /// Returns when the daemon must not use its database any more, and why.
    pub(crate) async fn failure(&mut self) -> RestoreError {
        match (&mut self.failure).await {
            Ok(error) => error,
            // The task was stopped.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops the task. A write in progress is completed unless the database does not answer in time.
    pub(crate) async fn stop(self) {
        // It fails only if the task has ended already.
        let _ = self.stop.send(());
        let abort = self.task.abort_handle();
        if tokio::time::timeout(STOP_TIMEOUT, self.task).await.is_err() {
            abort.abort();
        }
    }
}

/// Logs only the first of several failures in a row as a warning: an outage of the database is logged where jobs need it.
#[derive(Default)]
struct Failures {
    has_failed: bool,
}

impl Failures {
    fn note(&mut self, result: Result<(), impl Display>) {
        let had_failed = std::mem::replace(&mut self.has_failed, result.is_err());
        match result {
            Err(error) if had_failed => debug!("{error}"),
            Err(error) => warn!("{error}"),
            Ok(()) => {}
        }
    }
}
