//! Resets the watchdog while the scheduler makes progress.

use std::time::Duration;

use tokio::task::JoinHandle;

use super::{Notification, ServiceManager};

/// The scheduler ticks about once a second.
const TICK: Duration = Duration::from_secs(1);

/// Resets the watchdog after a tick of the scheduler, if the runtime's threads have run a task since the previous tick. So neither a
/// scheduler that does not tick nor jobs that block every thread look alive.
pub(crate) struct Watchdog {
    /// The number of ticks between two resets; `None` without a watchdog.
    every: Option<u32>,
    ticks: u32,
    probe: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Resets a watchdog with this timeout four times per timeout.
    pub(crate) fn new(watchdog: Option<Duration>) -> Self {
        let every = watchdog.map(|watchdog| {
            u32::try_from(watchdog.as_secs() / (4 * TICK.as_secs())).unwrap_or(u32::MAX).max(1)
        });
        Self { every, ticks: 0, probe: None }
    }

    /// Call it after each tick of the scheduler.
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
