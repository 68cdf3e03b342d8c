//! What must hold in every state, and what must be possible in one.

use stateright::Property;

use crate::{
    model::Protocol,
    state::{Daemon, Payer, State},
    variant::PanelPresence,
};

/// An hour is paid for once.
pub const ONCE: &str = "no hour is charged twice";
/// What lies before the watermark is paid for.
pub const WHOLE: &str = "no hour is skipped";
/// Nothing is taken that the watermark does not know of.
pub const KNOWN: &str = "no hour is charged beyond the watermark";
/// The future is not charged.
pub const ENDED: &str = "no hour is charged before it has ended";
/// Money neither appears nor disappears.
pub const WALLET: &str = "the wallet holds what was not charged";
/// A successor's work is not followed by its predecessor's.
pub const FENCING: &str = "commits never go back to an older claim";

/// The properties of a variant.
#[must_use]
pub fn of(protocol: &Protocol) -> Vec<Property<Protocol>> {
    let mut properties = vec![
        Property::always(ONCE, |protocol, state| {
            each_hour(protocol, state, |_, _, payer| payer != Payer::Several)
        }),
        Property::always(WHOLE, |protocol, state| {
            each_hour(protocol, state, |hour, meter, payer| hour >= meter || payer != Payer::None)
        }),
        Property::always(ENDED, |protocol: &Protocol, state: &State| {
            let instances = &state.database.instances;
            instances.iter().all(|instance| instance.mark.meter <= state.now)
                && each_hour(protocol, state, |hour, _, payer| hour < state.now || payer == Payer::None)
        }),
        Property::always(WALLET, |protocol: &Protocol, state: &State| {
            state.database.balance == protocol.opening() - state.database.taken
        }),
        Property::always(FENCING, |_, state: &State| !state.database.fell),
        Property::sometimes("daemons bill everything", |protocol, state| {
            each_hour(protocol, state, |_, _, payer| payer == Payer::Daemon)
        }),
    ];
    if protocol.size.daemons > 1 {
        properties.push(Property::sometimes(
            "a successor charges while its predecessor sleeps",
            |_, state: &State| {
                state.daemons.iter().any(|daemon| match daemon {
                    Daemon::Charging(run, _) => {
                        state.daemons.iter().filter_map(Daemon::number).any(|n| n < run.number)
                    }
                    _ => false,
                })
            },
        ));
    }
    if protocol.guards.panel != PanelPresence::Absent {
        properties.push(Property::sometimes("the panel bills everything", |protocol, state| {
            each_hour(protocol, state, |_, _, payer| payer == Payer::Panel)
        }));
    }
    if let PanelPresence::PanelByTrigger(_) = protocol.guards.panel {
        properties.push(Property::always(KNOWN, |protocol, state| {
            each_hour(protocol, state, |hour, meter, payer| hour < meter || payer == Payer::None)
        }));
        properties.push(Property::sometimes("the panel takes over from a daemon", |protocol, state| {
            some_instance(protocol, state, Payer::Daemon, Payer::Panel)
        }));
        properties.push(Property::sometimes("a daemon takes over from the panel", |protocol, state| {
            some_instance(protocol, state, Payer::Panel, Payer::Daemon)
        }));
    }
    properties
}

/// Whether it still makes sense to continue from `state`: what is charged twice or too early is so for good.
pub(crate) fn sound(protocol: &Protocol, state: &State) -> bool {
    each_hour(protocol, state, |_, _, payer| payer != Payer::Several)
        && state.database.instances.iter().all(|instance| instance.mark.meter <= state.now)
}

fn each_hour(protocol: &Protocol, state: &State, holds: impl Fn(u8, u8, Payer) -> bool) -> bool {
    protocol.instances().all(|instance| {
        let instance = &state.database.instances[usize::from(instance)];
        (0..protocol.size.hours).all(|hour| holds(hour, instance.mark.meter, instance.payer(hour)))
    })
}

/// Whether there is an instance of which `first` has taken the first hour, and `second` the next.
fn some_instance(protocol: &Protocol, state: &State, first: Payer, second: Payer) -> bool {
    protocol.instances().any(|instance| {
        let instance = &state.database.instances[usize::from(instance)];
        instance.payer(0) == first && instance.payer(1) == second
    })
}
