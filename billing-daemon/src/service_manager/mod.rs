//! What the service manager that started the daemon is told: that it works, what it does, and that it has not hung.

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

#[cfg(unix)]
use systemd::Channel;
#[cfg(windows)]
use windows::Channel;

pub(crate) use status_line::LastBilling;
pub(crate) use watchdog::Watchdog;

/// How often somebody who waits is told that it goes on, and for how long that holds.
const WAITING_EVERY: Duration = Duration::from_secs(10);
const WAITING_HOLDS: Duration = Duration::from_mins(1);

/// One thing to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notification<'a> {
    /// The start goes on, for no longer than this without another word.
    Starting { within: Duration },
    /// The daemon is able to work: for the first time, or again after [`Notification::Reloading`].
    Ready,
    /// It reads its configuration again.
    Reloading,
    /// The scheduler makes progress.
    Alive,
    /// It ends, within this time.
    Stopping { within: Duration },
    /// What it does, in one line.
    Status(&'a str),
}

/// The service manager, if there is one that listens.
pub(crate) struct ServiceManager {
    channel: Option<Channel>,
    last: Mutex<Last>,
}

/// What was told last, so that nothing is told twice.
#[derive(Default)]
struct Last {
    status: String,
    failed: bool,
}

impl ServiceManager {
    /// The one that started this process.
    pub(crate) fn of_process() -> Self {
        let channel = Channel::of_process().unwrap_or_else(|error| {
            warn!(%error, "cannot tell the service manager how it goes: {error}");
            None
        });
        Self { channel, last: Mutex::default() }
    }

    /// After which silence it takes the daemon for hung, if it watches.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.channel.as_ref().and_then(Channel::watchdog)
    }

    /// Tells it one thing.
    pub(crate) fn notify(&self, message: Notification<'_>) {
        self.tell_all(&[message]);
    }

    /// Tells it what the daemon does, if that is something else than before.
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

    /// Tells it again and again that the start goes on, because the daemon waits for `what`.
    pub(crate) async fn report_waiting(&self, what: &str) -> Infallible {
        let status = format!("waits for {what}");
        loop {
            self.tell_all(&[Notification::Starting { within: WAITING_HOLDS }, Notification::Status(&status)]);
            tokio::time::sleep(WAITING_EVERY).await;
        }
    }

    fn tell_all(&self, messages: &[Notification<'_>]) {
        self.send(&mut self.last.lock().unwrap_or_else(PoisonError::into_inner), messages);
    }

    fn send(&self, last: &mut Last, messages: &[Notification<'_>]) {
        let sent = self.channel.as_ref().map_or(Ok(()), |channel| channel.send(messages));
        if let Err(error) = &sent
            && !last.failed
        {
            warn!(%error, "the service manager does not hear how it goes: {error}");
        }
        last.failed = sent.is_err();
    }
}

/// Where there is none of the service managers that we know.
#[cfg(not(any(unix, windows)))]
enum Channel {}

#[cfg(not(any(unix, windows)))]
impl Channel {
    fn of_process() -> std::io::Result<Option<Self>> {
        Ok(None)
    }

    fn watchdog(&self) -> Option<Duration> {
        match *self {}
    }

    fn send(&self, _: &[Notification<'_>]) -> std::io::Result<()> {
        match *self {}
    }
}
