//! Visits every state of a variant and reports the findings.

use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};

use crate::{
    action::Action,
    model::Protocol,
    properties,
    state::State,
    variant::{Size, Variant},
};

/// What came of one variant.
#[derive(Debug)]
pub struct Finding {
    /// How many different states were seen.
    pub states: usize,
    /// The properties that do not hold in all of them.
    pub broken: Vec<&'static str>,
    /// What should be possible and is in none of them.
    pub impossible: Vec<&'static str>,
}

/// Goes through all states of `variant` in a world of `size`, or until the property that it should break is broken.
#[must_use]
pub fn explore(variant: &Variant, size: Size, threads: usize) -> Finding {
    let protocol = Protocol { guards: variant.guards, size };
    // A variant that breaks nothing is not done before its last state.
    let until =
        variant.breaks.map_or(HasDiscoveries::AnyFailures, |name| HasDiscoveries::AllOf([name].into()));
    let checker = protocol.checker().threads(threads).finish_when(until).spawn_bfs().join();
    let discovered = checker.discoveries();
    let named = |expectation: &Expectation, found: bool| {
        let properties = properties::of(&protocol).into_iter();
        properties
            .filter(|property| property.expectation == *expectation)
            .map(|property| property.name)
            .filter(|name| discovered.contains_key(name) == found)
            .collect()
    };
    Finding {
        states: checker.unique_state_count(),
        broken: named(&Expectation::Always, true),
        impossible: named(&Expectation::Sometimes, false),
    }
}

/// The shortest way to break `property`, if `variant` can in a world of `size`: one sentence a step.
#[must_use]
pub fn shortest(variant: &Variant, size: Size, property: &'static str) -> Option<Vec<String>> {
    let protocol = Protocol { guards: variant.guards, size };
    let up_to = |depth: usize| -> Option<Path<State, Action>> {
        let until = HasDiscoveries::AllOf([property].into());
        let checker = protocol.checker().target_max_depth(depth).finish_when(until).spawn_bfs().join();
        checker.discoveries().remove(property)
    };
    // The search finds some way; a tighter bound on its length, a shorter one.
    let mut found = up_to(usize::MAX)?;
    while let Some(shorter) = up_to(found.clone().into_states().len()) {
        found = shorter;
    }
    let steps = found.into_vec().into_iter();
    Some(steps.filter_map(|(state, action)| Some(action?.in_words(&state))).collect())
}
