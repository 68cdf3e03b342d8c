//! Turns that wait for one instant: one timer wakes them all, and each run begins before any of them is written down.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// The turns whose jobs are due at one instant.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    has_come: AtomicBool,
    comes: Notify,
    waiting: AtomicUsize,
    begun: Notify,
}

/// That a turn waits for the instant, or has not begun its run since. Whoever has it waits for nothing else.
pub(crate) struct Seat(Arc<Burst>);

impl Burst {
    /// The instant has come.
    pub(crate) fn begin(&self) {
        self.has_come.store(true, Ordering::SeqCst);
        self.comes.notify_waiters();
    }

    /// Returns at the instant.
    pub(crate) async fn instant(self: &Arc<Self>) -> Seat {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let seat = Seat(Arc::clone(self));
        // Listens before it looks, so that it misses nothing.
        let comes = self.comes.notified();
        if !self.has_come.load(Ordering::SeqCst) {
            comes.await;
        }
        seat
    }

    /// Returns when nobody has a seat any more.
    pub(crate) async fn all_begun(&self) {
        loop {
            let begun = self.begun.notified();
            if self.waiting.load(Ordering::SeqCst) == 0 {
                return;
            }
            begun.await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.begun.notify_waiters();
        }
    }
}
