//! The delivery of orders: payments between the decision and the call, calls that are repeated because their answer is lost, calls that
//! arrive late, and a backup that is restored. The policy is reduced to a wallet that covers the next hour or does not.

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model, Property};

/// What the newest order, or one before it, requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wanted {
    /// That the instances run.
    Running,
    /// That they are off.
    Suspended,
}

/// How far the newest order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// It is stored and waits for a call.
    Pending,
    /// It was sent at least once, without an answer.
    Called,
    /// The receiver has answered.
    Sent,
    /// It was not due any more.
    Cancelled,
}

/// Which guards are in place.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each guard is there or not, whatever the others are")]
pub struct Guards {
    /// The wallet is read again before the call.
    rechecks: bool,
    /// A receiver ignores an order that is older than one that it has.
    greatest: bool,
    /// A call without an answer is repeated.
    repeats: bool,
    /// A restored database is only watched until it is reconciled.
    watches: bool,
    /// The wanted state is ordered again then.
    reconciles: bool,
    /// The number of an order is at least the time, so that it is greater than one that a restore has lost.
    timed: bool,
}

const ALL: Guards =
    Guards { rechecks: true, greatest: true, repeats: true, watches: true, reconciles: true, timed: true };

/// The deliveries as they are, and each guard removed once, with the promise that is then broken.
pub const VARIANTS: [(&str, Option<&str>, Guards); 7] = [
    ("delivery", None, ALL),
    ("no-recheck", Some(NOT_PAID), Guards { rechecks: false, ..ALL }),
    ("no-greatest", Some(WANTED), Guards { greatest: false, ..ALL }),
    ("no-repeat", Some(ENDS), Guards { repeats: false, ..ALL }),
    ("no-watch", Some(RESTORED), Guards { watches: false, ..ALL }),
    ("no-reconciliation", Some(WANTED), Guards { reconciles: false, ..ALL }),
    ("no-time", Some(WANTED), Guards { timed: false, ..ALL }),
];

const NOT_PAID: &str = "no suspension is sent that was paid before";
const WANTED: &str = "a receiver that has answered the newest order is in its state";
const RESTORED: &str = "no suspension is sent from a restored database before it is reconciled";
const ENDS: &str = "an order can be carried out as long as it is not answered";

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The customer pays, or the money runs out.
    Wallet,
    /// The policy is checked.
    Check,
    /// The newest order is sent.
    Call,
    /// What was sent last arrives.
    Arrive,
    /// What was sent last is lost.
    Lose,
    /// The receiver's answer arrives.
    Answer,
    /// An order from before the newest one arrives late, or again.
    ArriveLate,
    /// A backup is restored, whose newest order requested this.
    Restore(Wanted),
    /// The operator sends the wanted state of the restored database again.
    Reconcile,
}

/// A state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "each fact holds or not, whatever the others are")]
pub struct World {
    covered: bool,
    wanted: Wanted,
    newest: Stage,
    /// Whether a copy of the newest order is between the daemon and the receiver.
    in_flight: bool,
    /// What earlier orders requested that may still arrive.
    late: BTreeSet<Wanted>,
    receiver: Wanted,
    /// Whether the receiver has carried out the newest order last.
    is_newest: bool,
    /// Whether the receiver has answered the newest order without doing anything, because it has a greater number.
    is_ignored: bool,
    was_restored: bool,
    /// Whether the restored database is not reconciled.
    is_restored: bool,
    sent_paid: bool,
    sent_restored: bool,
}

/// The deliveries with some guards.
#[derive(Clone, Copy, Debug)]
pub struct Delivery(Guards);

impl World {
    fn apply(&mut self, guards: Guards, action: Action) {
        match action {
            Action::Wallet => self.covered = !self.covered,
            Action::Check if self.is_restored && guards.watches => {}
            Action::Check => self.check(),
            Action::Call => self.call(guards),
            // The receiver has seen the numbers that the restore has lost.
            Action::Arrive if self.in_flight && self.was_restored && !guards.timed && guards.greatest => {
                self.is_ignored = true;
            }
            Action::Arrive if self.in_flight => {
                // The copy may arrive again later.
                (self.receiver, self.is_newest) = (self.wanted, true);
            }
            Action::Lose => self.in_flight = false,
            Action::Answer if self.newest == Stage::Called && (self.is_newest || self.is_ignored) => {
                self.newest = Stage::Sent;
            }
            Action::ArriveLate => {
                if let Some(late) = self.late.first().copied()
                    && !(guards.greatest && self.is_newest)
                {
                    (self.receiver, self.is_newest) = (late, false);
                }
            }
            Action::Restore(wanted) if !self.was_restored => {
                self.order(wanted, Stage::Sent);
                (self.was_restored, self.is_restored) = (true, true);
            }
            Action::Reconcile if self.is_restored => {
                self.is_restored = false;
                if guards.reconciles {
                    self.order(self.wanted, Stage::Pending);
                }
            }
            Action::Arrive | Action::Answer | Action::Restore(_) | Action::Reconcile => {}
        }
    }

    fn check(&mut self) {
        let wanted = if self.covered { Wanted::Running } else { Wanted::Suspended };
        if wanted != self.wanted {
            self.order(wanted, Stage::Pending);
        }
    }

    fn order(&mut self, wanted: Wanted, stage: Stage) {
        if matches!(self.newest, Stage::Called | Stage::Sent) || self.in_flight {
            self.late.insert(self.wanted);
        }
        (self.wanted, self.newest, self.in_flight) = (wanted, stage, false);
        (self.is_newest, self.is_ignored) = (false, false);
    }

    fn call(&mut self, guards: Guards) {
        if self.is_restored && guards.watches {
            return;
        }
        let is_due = self.newest == Stage::Pending || guards.repeats && self.newest == Stage::Called;
        if !is_due || self.in_flight {
            return;
        }
        let is_paid = self.wanted == Wanted::Suspended && self.covered;
        if is_paid && guards.rechecks {
            self.newest = Stage::Cancelled;
            return;
        }
        self.sent_paid |= is_paid;
        self.sent_restored |= self.is_restored && self.wanted == Wanted::Suspended;
        (self.newest, self.in_flight) = (Stage::Called, true);
    }

    /// Whether the newest order can still reach the receiver, or is not to be sent.
    fn can_end(&self, guards: Guards) -> bool {
        match self.newest {
            Stage::Pending | Stage::Sent | Stage::Cancelled => true,
            Stage::Called => self.in_flight || self.is_newest || self.is_ignored || guards.repeats,
        }
    }
}

impl Model for Delivery {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            covered: true,
            wanted: Wanted::Running,
            newest: Stage::Sent,
            in_flight: false,
            late: BTreeSet::new(),
            receiver: Wanted::Running,
            is_newest: true,
            is_ignored: false,
            was_restored: false,
            is_restored: false,
            sent_paid: false,
            sent_restored: false,
        }]
    }

    fn actions(&self, _: &World, actions: &mut Vec<Action>) {
        actions.extend([
            Action::Wallet,
            Action::Check,
            Action::Call,
            Action::Arrive,
            Action::Lose,
            Action::Answer,
            Action::ArriveLate,
            Action::Restore(Wanted::Running),
            Action::Restore(Wanted::Suspended),
            Action::Reconcile,
        ]);
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        world.apply(self.0, action);
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOT_PAID, |_, world: &World| !world.sent_paid),
            Property::always(WANTED, |_, world: &World| {
                world.newest != Stage::Sent || world.receiver == world.wanted || world.is_restored
            }),
            Property::always(RESTORED, |_, world: &World| !world.sent_restored),
            Property::always(ENDS, |model: &Self, world: &World| world.can_end(model.0)),
            Property::sometimes("an organization is suspended", |_, world: &World| {
                world.newest == Stage::Sent && world.receiver == Wanted::Suspended
            }),
            Property::sometimes("a restored database is reconciled", |_, world: &World| {
                world.was_restored && !world.is_restored && world.newest == Stage::Sent
            }),
            Property::sometimes("a suspension is cancelled", |_, world: &World| {
                world.newest == Stage::Cancelled
            }),
        ]
    }
}

/// The number of states of a variant, the promises that are broken in some of them, and what is impossible and should not be.
#[must_use]
pub fn explore(guards: Guards) -> (usize, Vec<&'static str>, Vec<&'static str>) {
    let checker = Delivery(guards).checker().finish_when(HasDiscoveries::All).spawn_bfs().join();
    let discovered = checker.discoveries();
    let of = |expectation, found| {
        let properties = Delivery(guards).properties().into_iter();
        let properties = properties.filter(|property| property.expectation == expectation);
        properties
            .map(|property| property.name)
            .filter(|name| discovered.contains_key(name) == found)
            .collect()
    };
    (
        checker.unique_state_count(),
        of(stateright::Expectation::Always, true),
        of(stateright::Expectation::Sometimes, false),
    )
}
