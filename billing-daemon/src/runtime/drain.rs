//! The end of the daemon: runs in progress continue for a while, then they are requested to stop.

use std::time::Duration;

use billing_kinds::Pings;
use billing_scheduler::{DrainReport, Scheduler};
use sea_orm::DatabaseConnection;
use tracing::{error, info, warn};

use super::{signals::Signals, ticker::Ticker};
use crate::{
    exit::{Exit, Failure},
    service_manager::{ServiceManager, Watchdog},
};

/// How long closing the connections may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits for the runs in progress. The ticks feed the watchdog: a daemon that waits does not hang.
pub(super) async fn drain(
    scheduler: &Scheduler,
    timeout: Duration,
    signals: &mut Signals,
    ticker: &mut Ticker,
    manager: &ServiceManager,
) -> DrainReport {
    let mut watchdog = Watchdog::new(manager.watchdog());
    let mut drained = std::pin::pin!(drain_until_signal(scheduler, timeout, signals));
    loop {
        tokio::select! {
            report = &mut drained => return report,
            () = ticker.tick() => watchdog.ticked(manager),
        }
    }
}

/// A second signal requests runs in progress to stop, and a third one ends the process at once.
async fn drain_until_signal(scheduler: &Scheduler, timeout: Duration, signals: &mut Signals) -> DrainReport {
    let mut drained = std::pin::pin!(scheduler.drain(timeout));
    let second = tokio::select! {
        report = &mut drained => return report,
        second = signals.next() => second,
    };
    warn!(
        "{second} while stopping: runs in progress are requested to stop; another signal ends the process at once"
    );
    scheduler.interrupt();
    tokio::select! {
        report = drained => report,
        third = signals.next() => {
            error!("{third} while stopping: the process ends at once");
            std::process::exit(third.exit_code());
        }
    }
}

/// Sends the last pings of jobs, for which a slow server may need its timeout.
pub(super) async fn finish_pings(pings: Pings) {
    // It fails only if it panics, which the panic hook logs.
    let _ = tokio::task::spawn_blocking(move || pings.close()).await;
}

pub(super) async fn close(db: DatabaseConnection) -> Result<(), Failure> {
    // An abandoned run may never return its connection; the end of the process closes it.
    let Ok(closed) = tokio::time::timeout(CLOSE_TIMEOUT, db.close()).await else { return Ok(()) };
    closed.map_err(|error| Failure::database("close the database", &error))
}

/// Returns an error if runs were abandoned.
pub(super) fn result_of(drained: DrainReport) -> Result<(), Failure> {
    if drained.abandoned > 0 {
        let message =
            format!("stopped, but {} runs did not end in time and run again later", drained.abandoned);
        return Err(Failure::new(Exit::Internal, message));
    }
    info!("stopped");
    Ok(())
}
