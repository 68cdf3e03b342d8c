//! The prepaid policy keeps its promises in every order of events, and each of its guards is missed when it is taken away.

use protocol_model::prepaid::{Broken, VARIANTS, delivery, explore};

#[test]
fn policy_keeps_its_promises() {
    for variant in VARIANTS.iter().filter(|variant| variant.breaks.is_none()) {
        let finding = explore(variant);
        assert!(finding.broken.is_empty(), "{}: {finding:?}", variant.name);
        assert!(finding.impossible.is_empty(), "{}: {finding:?}", variant.name);
        let row = format!("| `{}` | {} |", variant.name, finding.states);
        assert!(include_str!("../README.md").contains(&row), "the README should contain `{row}`");
    }
}

#[test]
fn each_removed_guard_is_missed() {
    for variant in VARIANTS.iter().filter(|variant| variant.breaks.is_some()) {
        let finding = explore(variant);
        let broken = variant.breaks.map(Broken::what);
        assert!(
            broken.is_some_and(|broken| finding.broken.contains(&broken)),
            "{}: {finding:?}",
            variant.name
        );
        println!("{}: {:?}", variant.name, finding.steps);
    }
}

#[test]
fn receiver_ends_in_wanted_state() {
    for (name, breaks, guards) in delivery::VARIANTS {
        let (states, broken, impossible) = delivery::explore(guards);
        println!("{name}: {states} states, broken: {broken:?}");
        assert!(impossible.is_empty() || breaks.is_some(), "{name}: {impossible:?}");
        match breaks {
            None => {
                assert!(broken.is_empty(), "{name}: {broken:?}");
                let row = format!("| `{name}` | {states} |");
                assert!(include_str!("../README.md").contains(&row), "the README should contain `{row}`");
            }
            Some(breaks) => assert!(broken.contains(&breaks), "{name}: {broken:?}"),
        }
    }
}
