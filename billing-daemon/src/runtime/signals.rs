//! The signals that end the daemon, on every platform, and the one that makes it reread its configuration.

use std::io;

pub(crate) use billing_scheduler::ShutdownSignal;

/// Requests that the configuration is reread, where the platform has a signal for that.
pub(crate) struct ReloadSignal {
    #[cfg(unix)]
    hangup: tokio::signal::unix::Signal,
}

impl ReloadSignal {
    #[cfg_attr(not(unix), expect(clippy::unnecessary_wraps, reason = "where there are signals it can fail"))]
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            hangup: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?,
        })
    }

    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        if self.hangup.recv().await.is_some() {
            return;
        }
        std::future::pending::<()>().await;
    }
}

/// Returns when a service manager without signals requests the end.
async fn stop_requested() {
    #[cfg(windows)]
    crate::service_manager::windows::stop_requested().await;
    #[cfg(not(windows))]
    std::future::pending::<()>().await;
}

/// Listens from its construction on: a signal between two calls of `next` is not lost.
pub(crate) struct Signals(billing_scheduler::Signals);

impl Signals {
    pub(crate) fn listen() -> io::Result<Self> {
        billing_scheduler::Signals::listen().map(Self)
    }

    pub(crate) async fn next(&mut self) -> ShutdownSignal {
        tokio::select! {
            signal = self.0.next() => signal,
            () = stop_requested() => ShutdownSignal::Terminate,
        }
    }
}
