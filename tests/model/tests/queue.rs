//! The claims of queued jobs hold, and each of their safeguards is missed when it is removed.

use protocol_model::queue::{ALL, MUTATIONS, explore};

#[test]
fn queued_jobs_are_executed_once() {
    let (states, broken, impossible) = explore(ALL, None);
    assert!(broken.is_empty(), "broken: {broken:?}");
    assert!(impossible.is_empty(), "never reached: {impossible:?}");
    assert!(
        include_str!("../README.md").contains(&format!("{states} states")),
        "the README should say `{states} states`"
    );
}

#[test]
fn each_removed_queue_safeguard_is_missed() {
    for (guards, property) in MUTATIONS {
        let (_, broken, _) = explore(guards, Some(property));
        assert!(broken.contains(&property), "{guards:?} should break `{property}`");
    }
}
