//! How long the panel waits for a wallet while the daemon bills.

use std::time::{Duration, Instant};

use tokio::{sync::oneshot, time::sleep};

/// The time between two top-ups.
const PAUSE: Duration = Duration::from_millis(5);

/// How long each top-up took.
#[derive(Debug, Default)]
pub(super) struct Waits {
    milliseconds: Vec<f64>,
}

impl Waits {
    /// Tops up repeatedly until it is stopped.
    pub(super) async fn of(mut top_up: impl AsyncFnMut(usize), mut stop: oneshot::Receiver<()>) -> Self {
        let mut waits = Self::default();
        while matches!(stop.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
            let started = Instant::now();
            top_up(waits.milliseconds.len()).await;
            waits.milliseconds.push(started.elapsed().as_secs_f64() * 1e3);
            sleep(PAUSE).await;
        }
        waits.milliseconds.sort_by(f64::total_cmp);
        waits
    }

    pub(super) fn len(&self) -> usize {
        self.milliseconds.len()
    }

    /// A quantile of the durations, in milliseconds.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among thousands"
    )]
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let last = self.milliseconds.len().saturating_sub(1);
        self.milliseconds.get((last as f64 * share).ceil() as usize).copied().unwrap_or(f64::NAN)
    }
}
