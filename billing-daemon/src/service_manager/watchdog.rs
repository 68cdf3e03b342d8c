//! What keeps the watchdog quiet: the scheduler's own progress, and nothing else.

use std::time::Duration;

use tokio::task::JoinHandle;

use super::{Notification, ServiceManager};

/// Ticks come about once a second.
const TICK: Duration = Duration::from_secs(1);

/// Feeds the watchdog after a tick of the scheduler, if the threads that run the jobs have run something since the tick before.
///
/// Without ticks nothing is fed, and neither while every one of these threads is held by a job: the ticks might go on then, and
/// no job would.
pub(crate) struct Watchdog {
    /// So many ticks may pass without feeding it. None: nobody watches.
    every: Option<u32>,
    ticks: u32,
    probe: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// The pulse that this watchdog needs: four beats within the time after which it acts.
    pub(crate) fn new(watchdog: Option<Duration>) -> Self {
        let every = watchdog.map(|watchdog| {
            u32::try_from(watchdog.as_secs() / (4 * TICK.as_secs())).unwrap_or(u32::MAX).max(1)
        });
        Self { every, ticks: 0, probe: None }
    }

    /// The scheduler has ticked.
    pub(crate) fn ticked(&mut self, manager: &ServiceManager) {
        let Some(every) = self.every else { return };
        self.ticks = self.ticks.saturating_add(1);
        if self.probe.as_ref().is_some_and(|probe| !probe.is_finished()) {
            return;
        }
        let has_run = self.probe.replace(tokio::spawn(async {})).is_some();
        if has_run && self.ticks >= every {
            self.ticks = 0;
            manager.notify(Notification::Alive);
        }
    }
}
