//! What calls the scheduler once a second. It never decides when a job runs: it only makes the scheduler look.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};
use tracing::{info, warn};

/// Without a ring for this long, we ring ourselves.
const MISSED_AFTER: Duration = Duration::from_secs(3);

/// Rings once a second until it is dropped or stopped.
pub(crate) struct Ticker {
    cron: JobScheduler,
    rings: mpsc::Receiver<()>,
    missing: bool,
}

impl Ticker {
    pub(crate) async fn start() -> Result<Self, JobSchedulerError> {
        // A ring that nobody took yet needs no second one beside it.
        let (bell, rings) = mpsc::channel(1);
        let cron = JobScheduler::new().await?;
        let every_second = Job::new("* * * * * *", move |_, _| {
            let _ = bell.try_send(());
        })?;
        cron.add(every_second).await?;
        cron.start().await?;
        Ok(Self { cron, rings, missing: false })
    }

    /// Returns at the next ring, or a second after the last one if rings have stopped.
    pub(crate) async fn ring(&mut self) {
        let patience = if self.missing { Duration::from_secs(1) } else { MISSED_AFTER };
        match tokio::time::timeout(patience, self.rings.recv()).await {
            Ok(Some(())) if self.missing => {
                self.missing = false;
                info!("the ringer rings again");
            }
            Ok(Some(())) => {}
            none @ (Ok(None) | Err(_)) => {
                if none.is_ok() {
                    tokio::time::sleep(patience).await;
                }
                if !self.missing {
                    warn!(
                        "the ringer has not rung for {} s: ringing by our own timer",
                        MISSED_AFTER.as_secs()
                    );
                }
                self.missing = true;
            }
        }
    }

    pub(crate) async fn stop(mut self) {
        if let Err(error) = self.cron.shutdown().await {
            warn!(%error, "the ringer did not stop: {error}");
        }
    }
}
