//! Runs that are due at the same instant: each begins before any of them is written down.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// The turns that wait for one instant.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    waiting: AtomicUsize,
    begun: Notify,
}

/// One of them: it waits until this is dropped. While it has it, it waits for nothing but the instant, or others would wait
/// for that, too.
pub(crate) struct Seat(Arc<Burst>);

impl Burst {
    pub(crate) fn sit(self: &Arc<Self>) -> Seat {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Seat(Arc::clone(self))
    }

    /// Returns when nobody waits for the instant any more.
    pub(crate) async fn all_begun(&self) {
        loop {
            // Whoever leaves last tells those who asked before it looks for them.
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
