//! What happened in a campaign, as customers and receivers saw it.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

use uuid::Uuid;

use crate::faults::fleet::Micros;

/// The customers' clock, which only the campaign moves. A daemon may read any time between the two bounds.
#[derive(Debug)]
pub(super) struct Clock {
    lower: AtomicI64,
    upper: AtomicI64,
}

impl Clock {
    pub(super) fn new(now: Micros) -> Self {
        Self { lower: now.into(), upper: now.into() }
    }

    /// The time is about to become `now`.
    pub(super) fn announce(&self, now: Micros) {
        self.upper.store(now, Ordering::SeqCst);
    }

    /// Every daemon reads the announced time from here on.
    pub(super) fn arrive(&self) {
        self.lower.store(self.upper.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    pub(super) fn earliest(&self) -> Micros {
        self.lower.load(Ordering::SeqCst)
    }

    pub(super) fn latest(&self) -> Micros {
        self.upper.load(Ordering::SeqCst)
    }
}

/// An order as the panel got it.
#[derive(Clone, Debug)]
pub(super) struct OrderReceipt {
    pub(super) id: String,
    pub(super) organization: Uuid,
    pub(super) number: i64,
    pub(super) suspends: bool,
    /// The time of the decision, in whole seconds.
    pub(super) decided: Micros,
    /// The levels and times of the notices that the order states as delivered.
    pub(super) notices: Vec<(i32, Micros)>,
    /// How often all daemons had been started when it arrived.
    pub(super) generation: usize,
    pub(super) at: Instant,
    /// Whether the panel carried it out.
    pub(super) accepted: bool,
    /// Whether the panel answered so.
    pub(super) answered: bool,
}

/// A mail as the server got it.
#[derive(Clone, Debug)]
pub(super) struct MailReceipt {
    /// The id of the event.
    pub(super) id: String,
    /// The earliest time at which it arrived.
    pub(super) at: Micros,
    pub(super) accepted: bool,
    pub(super) answered: bool,
    /// Whether it will never be accepted.
    pub(super) rejected: bool,
}

/// What a customer did.
#[derive(Clone, Debug)]
pub(super) struct Action {
    pub(super) organization: Uuid,
    /// The hours that a payment adds. None: an instance was deleted, and the rest lasts longer.
    pub(super) hours: Option<i64>,
    /// Whether the payment suffices for the rest of the campaign.
    pub(super) suffices: bool,
    /// The bounds of the time at which it was committed.
    pub(super) between: (Micros, Micros),
    pub(super) done: Instant,
    /// How often all daemons had been started when it was done.
    pub(super) generation: usize,
}

/// A time in which all daemons were down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub(super) from: (Micros, Instant),
    pub(super) until: (Micros, Instant),
}

#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) orders: Vec<OrderReceipt>,
    pub(super) mails: Vec<MailReceipt>,
    pub(super) actions: Vec<Action>,
    pub(super) outages: Vec<Outage>,
    /// When the panel accepted no order.
    pub(super) panel_failures: Vec<(Instant, Instant)>,
}

/// Everything that is noted while a campaign lasts.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) clock: Clock,
    entries: Mutex<Entries>,
}

impl Record {
    pub(super) fn new(now: Micros) -> Self {
        Self { clock: Clock::new(now), entries: Mutex::default() }
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many orders of this kind the panel carried out.
    pub(super) fn carried_out(&self, suspends: bool) -> u64 {
        let entries = self.entries();
        entries.orders.iter().filter(|order| order.accepted && order.suspends == suspends).count() as u64
    }

    /// How often all daemons were started after an outage.
    pub(super) fn generation(&self) -> usize {
        self.entries().outages.len()
    }
}
