//! Ticks the scheduler once a second. `tokio-cron-scheduler` is only the source of ticks: the scheduler itself decides when a job
//! runs, because it must also decide about misfires, leases and clock changes.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};
use tracing::{info, warn};

/// Without a tick for this long, our own timer replaces them.
const MISSED_AFTER: Duration = Duration::from_secs(3);

/// Ticks once a second until it is dropped or stopped.
pub(crate) struct Ticker {
    cron: JobScheduler,
    ticks: mpsc::Receiver<()>,
    missing: bool,
}

impl Ticker {
    pub(crate) async fn start() -> Result<Self, JobSchedulerError> {
        // One tick waits at most: the scheduler handles everything that is due at once.
        let (sender, ticks) = mpsc::channel(1);
        let cron = JobScheduler::new().await?;
        let every_second = Job::new("* * * * * *", move |_, _| {
            let _ = sender.try_send(());
        })?;
        cron.add(every_second).await?;
        cron.start().await?;
        Ok(Self { cron, ticks, missing: false })
    }

    /// Returns at the next tick, or a second after the last one if ticks are missing.
    pub(crate) async fn tick(&mut self) {
        let timeout = if self.missing { Duration::from_secs(1) } else { MISSED_AFTER };
        match tokio::time::timeout(timeout, self.ticks.recv()).await {
            Ok(Some(())) if self.missing => {
                self.missing = false;
                info!("the cron timer ticks again");
            }
            Ok(Some(())) => {}
            none @ (Ok(None) | Err(_)) => {
                if none.is_ok() {
                    tokio::time::sleep(timeout).await;
                }
                if !self.missing {
                    let seconds = MISSED_AFTER.as_secs();
                    warn!("the cron timer has not ticked for {seconds} s: another timer replaces it");
                }
                self.missing = true;
            }
        }
    }

    pub(crate) async fn stop(mut self) {
        if let Err(error) = self.cron.shutdown().await {
            warn!(%error, "cannot stop the cron timer: {error}");
        }
    }
}
