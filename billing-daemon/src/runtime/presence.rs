//! Reports that this daemon runs, with or without a heartbeat job, for `status`, `doctor` and `jobs trigger`. The panel reads only
//! heartbeats, which this does not write.

use std::{sync::Arc, time::Duration};

use billing_jobs::daemon_status::StatusRow;
use tokio::{sync::oneshot, task::JoinHandle};
use tracing::{debug, warn};

/// How often the row is written. A daemon whose row is older than two and a half intervals counts as dead.
const WRITE_INTERVAL: Duration = Duration::from_mins(1);
/// How long a write in progress may delay the shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A task that writes the row of this process until it is stopped.
pub(crate) struct Presence {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Presence {
    /// Writes `status` every minute. With a heartbeat job, which writes it at the start, the first write is a minute away.
    pub(crate) fn start(status: Arc<StatusRow>, has_heartbeat: bool) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut wait = if has_heartbeat { WRITE_INTERVAL } else { Duration::ZERO };
            let mut has_failed = false;
            loop {
                tokio::select! {
                    _ = &mut stopped => return,
                    () = tokio::time::sleep(wait) => {}
                }
                wait = WRITE_INTERVAL;
                match status.present().await {
                    Ok(()) => has_failed = false,
                    // An outage of the database is logged where jobs need it.
                    Err(error) if has_failed => {
                        debug!(%error, "cannot report that this daemon runs: {error}");
                    }
                    Err(error) => {
                        has_failed = true;
                        warn!(%error, "cannot report that this daemon runs: {error}");
                    }
                }
            }
        });
        Self { stop, task }
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
