//! The prepaid policy of one organization: the decision of `billing-jobs` itself, called in every order of hours, payments, outages,
//! deliveries and checks.

pub mod delivery;
mod variant;
mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};

use self::variant::Guards;
pub use self::{
    variant::{VARIANTS, Variant},
    world::{Action, Broken, Permission, World},
};

/// The policy with some guards.
#[derive(Clone, Copy, Debug)]
pub struct Prepaid {
    guards: Guards,
    actions: &'static [Action],
}

impl Model for Prepaid {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_none() {
            actions.extend_from_slice(self.actions);
            actions.extend(world.undelivered().map(Action::Deliver));
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        world.apply(&self.guards, action);
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(Broken::Unwarned.what(), |_, world: &World| {
                world.broken != Some(Broken::Unwarned)
            }),
            Property::always(Broken::NoGrace.what(), |_, world: &World| {
                world.broken != Some(Broken::NoGrace)
            }),
            Property::always(Broken::Unannounced.what(), |_, world: &World| {
                world.broken != Some(Broken::Unannounced)
            }),
            Property::always(Broken::Twice.what(), |_, world: &World| world.broken != Some(Broken::Twice)),
            Property::always(Broken::NotResumed.what(), |_, world: &World| {
                world.broken != Some(Broken::NotResumed)
            }),
            Property::always(Broken::Guessed.what(), |_, world: &World| {
                world.broken != Some(Broken::Guessed)
            }),
            Property::always(Broken::Forbidden.what(), |_, world: &World| {
                world.broken != Some(Broken::Forbidden)
            }),
            Property::sometimes("an organization is suspended", |_, world: &World| world.is_suspended()),
            Property::sometimes("a suspended organization is resumed", |_, world: &World| world.resumed),
        ]
    }
}

/// What came of one variant.
#[derive(Debug)]
pub struct Finding {
    /// How many different states were seen.
    pub states: usize,
    /// The promises that are broken in some state.
    pub broken: Vec<&'static str>,
    /// What must be possible and is in no state.
    pub impossible: Vec<&'static str>,
    /// One way to break a promise that is broken.
    pub steps: Vec<Action>,
}

/// Visits all states of `variant`, or as many as it takes to break what it breaks.
#[must_use]
pub fn explore(variant: &Variant) -> Finding {
    let until = variant
        .breaks
        .map_or(HasDiscoveries::AnyFailures, |broken| HasDiscoveries::AllOf([broken.what()].into()));
    let model = Prepaid { guards: variant.guards, actions: variant.actions };
    let checker = model.checker().finish_when(until).spawn_bfs().join();
    let discovered = checker.discoveries();
    let names = |always: bool, found: bool| -> Vec<&'static str> {
        let is_always = |property: &Property<Prepaid>| {
            (property.expectation == stateright::Expectation::Always) == always
        };
        let properties = model.properties().into_iter().filter(is_always);
        properties
            .map(|property| property.name)
            .filter(|name| discovered.contains_key(name) == found)
            .collect()
    };
    let broken = names(true, true);
    let first = variant.breaks.map(Broken::what).or_else(|| broken.first().copied());
    let path = first.and_then(|name| discovered.get(name).cloned());
    Finding {
        states: checker.unique_state_count(),
        broken,
        impossible: names(false, false),
        steps: path.map(stateright::Path::into_actions).unwrap_or_default(),
    }
}
