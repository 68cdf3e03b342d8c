//! Starts the runs of one instant together: one timer opens the gate, and no run is recorded before all have started.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// The gate that the lease cycles of one instant wait at.
#[derive(Debug, Default)]
pub(super) struct StartGate {
    is_open: AtomicBool,
    opened: Notify,
    tickets: AtomicUsize,
    all_started: Notify,
}

/// Held by a lease cycle, or by the task of its run, until the run has started. The holder waits for nothing but the opening.
pub(super) struct StartTicket(Arc<StartGate>);

impl StartGate {
    /// Lets every lease cycle pass, because the instant has come.
    pub(super) fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
        self.opened.notify_waiters();
    }

    /// Returns a ticket to wait for the opening with.
    pub(super) fn ticket(self: &Arc<Self>) -> StartTicket {
        self.tickets.fetch_add(1, Ordering::SeqCst);
        StartTicket(Arc::clone(self))
    }

    /// Returns when no lease cycle holds a ticket.
    pub(super) async fn all_started(&self) {
        loop {
            let all_started = self.all_started.notified();
            if self.tickets.load(Ordering::SeqCst) == 0 {
                return;
            }
            all_started.await;
        }
    }
}

impl StartTicket {
    /// Returns when the gate is open.
    pub(super) async fn opened(&self) {
        // Created before the check, so that no notification is missed.
        let opened = self.0.opened.notified();
        if !self.0.is_open.load(Ordering::SeqCst) {
            opened.await;
        }
    }
}

impl Drop for StartTicket {
    fn drop(&mut self) {
        if self.0.tickets.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.all_started.notify_waiters();
        }
    }
}
