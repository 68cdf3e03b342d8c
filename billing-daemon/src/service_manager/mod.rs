//! Reports to the service manager that started the daemon: readiness, status, and a watchdog. A container's runtime, which reads no
//! reports, probes the liveness file instead.

pub(crate) mod liveness;
mod status_line;
#[cfg(unix)]
mod systemd;
mod watchdog;
#[cfg(windows)]
pub(crate) mod windows;

use std::{
    convert::Infallible,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tracing::warn;

use liveness::LivenessFile;
#[cfg(unix)]
use systemd::Channel;
#[cfg(windows)]
use windows::Channel;

pub(crate) use status_line::LastBilling;
pub(crate) use watchdog::Watchdog;

/// How often a start that waits is reported, and the time that each report adds to the start timeout.
const WAITING_EVERY: Duration = Duration::from_secs(10);
const WAITING_EXTENSION: Duration = Duration::from_mins(1);

/// One report to the service manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notification<'a> {
    /// The start continues; the next report comes within this time.
    Starting { within: Duration },
    /// The start, or the reload after [`Notification::Reloading`], is complete.
    Ready,
    /// The daemon reads its configuration again.
    Reloading,
    /// The scheduler makes progress: resets the watchdog.
    Alive,
    /// The daemon ends within this time.
    Stopping { within: Duration },
    /// What the daemon does, in one line.
    Status(&'a str),
}

/// The service manager, if one started this process, and the liveness file, if there is one.
pub(crate) struct ServiceManager {
    channel: Option<Channel>,
    liveness: Option<LivenessFile>,
    last: Mutex<LastReport>,
}

/// The previous report, so that neither a status nor a warning is repeated.
#[derive(Default)]
struct LastReport {
    status: String,
    failed: bool,
}

impl ServiceManager {
    /// Returns the service manager and the liveness file that the environment names.
    pub(crate) fn from_process() -> Self {
        let channel = Channel::from_process().unwrap_or_else(|error| {
            warn!(%error, "cannot notify the service manager: {error}");
            None
        });
        let liveness = LivenessFile::from_process().unwrap_or_else(|error| {
            warn!(%error, "{error}; `billing-daemon healthcheck` reports that no daemon runs");
            None
        });
        Self { channel, liveness, last: Mutex::default() }
    }

    /// The shortest timeout of a watchdog, if there is a watchdog.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        let of_file = self.liveness.as_ref().map(|_| liveness::WATCHDOG);
        let of_manager = self.channel.as_ref().and_then(Channel::watchdog);
        of_file.into_iter().chain(of_manager).min()
    }

    pub(crate) fn notify(&self, notification: Notification<'_>) {
        self.notify_all(&[notification]);
    }

    /// Reports what the daemon does, if that has changed.
    pub(crate) fn notify_status(&self, status: &impl fmt::Display) {
        if self.channel.is_none() {
            return;
        }
        let status = status.to_string();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.status != status {
            self.send(&mut last, &[Notification::Status(&status)]);
            last.status = status;
        }
    }

    /// Reports repeatedly that the start continues and waits for `what`.
    pub(crate) async fn report_waiting(&self, what: &str) -> Infallible {
        let status = format!("waiting for {what}");
        loop {
            let extension = Notification::Starting { within: WAITING_EXTENSION };
            self.notify_all(&[extension, Notification::Status(&status)]);
            tokio::time::sleep(WAITING_EVERY).await;
        }
    }

    fn notify_all(&self, notifications: &[Notification<'_>]) {
        self.send(&mut self.last.lock().unwrap_or_else(PoisonError::into_inner), notifications);
    }

    fn send(&self, last: &mut LastReport, notifications: &[Notification<'_>]) {
        let sent = self.channel.as_ref().map_or(Ok(()), |channel| channel.send(notifications));
        // A status alone, which may be reported at any time, does not mean progress.
        let is_progress = notifications.iter().any(|one| !matches!(one, Notification::Status(_)));
        let renewed = self.liveness.as_ref().filter(|_| is_progress).map_or(Ok(()), LivenessFile::renew);
        let sent = sent.and(renewed);
        if let Err(error) = &sent
            && !last.failed
        {
            warn!(%error, "cannot notify the service manager: {error}");
        }
        last.failed = sent.is_err();
    }
}

/// A platform without a known service manager.
#[cfg(not(any(unix, windows)))]
enum Channel {}

#[cfg(not(any(unix, windows)))]
impl Channel {
    fn from_process() -> std::io::Result<Option<Self>> {
        Ok(None)
    }

    fn watchdog(&self) -> Option<Duration> {
        match *self {}
    }

    fn send(&self, _: &[Notification<'_>]) -> std::io::Result<()> {
        match *self {}
    }
}
