//! Reads the configuration file when it has changed, in a separate thread: a file system that does not respond delays neither the
//! jobs nor the end of the daemon.

use std::{
    io,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use tokio::sync::mpsc as channel;

use super::reload::{ConfigFile, Reading};

/// How often the file is polled.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The thread that owns the configuration file.
pub(super) struct ConfigWatch {
    requests: mpsc::Sender<()>,
    readings: channel::Receiver<Reading>,
}

impl ConfigWatch {
    /// Starts the thread, which ends after this was dropped. The end of the process does not wait for it.
    pub(super) fn start(source: ConfigFile) -> io::Result<Self> {
        let (requests, requested) = mpsc::channel();
        // While a configuration is applied, the next one waits.
        let (sender, readings) = channel::channel(1);
        let watch = move || watch(source, &requested, &sender);
        thread::Builder::new().name("config".to_owned()).spawn(watch)?;
        Ok(Self { requests, readings })
    }

    /// Requests that the file is read, changed or not.
    pub(super) fn request(&self) {
        // The thread ends early only if it panicked, which the panic hook logged.
        let _ = self.requests.send(());
    }

    /// Returns the next configuration that was read. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Reading {
        match self.readings.recv().await {
            Some(reading) => reading,
            None => std::future::pending().await,
        }
    }
}

fn watch(mut source: ConfigFile, requested: &mpsc::Receiver<()>, sender: &channel::Sender<Reading>) {
    loop {
        let is_due = match requested.recv_timeout(POLL_INTERVAL) {
            Ok(()) => {
                // One reading answers all requests so far.
                while requested.try_recv().is_ok() {}
                true
            }
            Err(RecvTimeoutError::Timeout) => source.has_changed(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if is_due && sender.blocking_send(source.reread()).is_err() {
            return;
        }
    }
}
