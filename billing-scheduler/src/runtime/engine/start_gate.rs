//! Turns that wait for one instant: one timer wakes them all, and each run begins before any of them is written down.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// The turns whose jobs are due at one instant.
#[derive(Debug, Default)]
pub(crate) struct StartGate {
    is_open: AtomicBool,
    opened: Notify,
    waiting: AtomicUsize,
    started: Notify,
}

/// That a turn waits for the instant, or has not begun its run since. Whoever has it waits for nothing else.
pub(crate) struct StartTicket(Arc<StartGate>);

impl StartGate {
    /// The instant has come.
    pub(crate) fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
        self.opened.notify_waiters();
    }

    /// Returns at the instant.
    pub(crate) async fn wait(self: &Arc<Self>) -> StartTicket {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let ticket = StartTicket(Arc::clone(self));
        // Listens before it looks, so that it misses nothing.
        let opened = self.opened.notified();
        if !self.is_open.load(Ordering::SeqCst) {
            opened.await;
        }
        ticket
    }

    /// Returns when nobody has a seat any more.
    pub(crate) async fn all_started(&self) {
        loop {
            let started = self.started.notified();
            if self.waiting.load(Ordering::SeqCst) == 0 {
                return;
            }
            started.await;
        }
    }
}

impl Drop for StartTicket {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.started.notify_waiters();
        }
    }
}
