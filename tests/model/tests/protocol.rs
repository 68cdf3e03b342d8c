//! The protocol holds, and each of its guards is missed when it is taken away.

use protocol_model::{
    check::{explore, shortest},
    variant::{VARIANTS, Variant},
};

fn variant(name: &str) -> &'static Variant {
    VARIANTS.iter().find(|variant| variant.name == name).expect("a variant of that name")
}

fn holds(name: &str) {
    let variant = variant(name);
    let finding = explore(variant, variant.size, 1);
    assert!(finding.broken.is_empty(), "{name} breaks: {:?}", finding.broken);
    assert!(finding.impossible.is_empty(), "{name} never reaches: {:?}", finding.impossible);
    let row = format!("| `{name}` |");
    let row = include_str!("../README.md").lines().find(|line| line.starts_with(&row));
    let states = format!("| {} |", finding.states);
    assert!(row.is_some_and(|row| row.contains(&states)), "the README should say `{states}` of {name}");
}

#[test]
fn several_daemons_charge_each_hour_once() {
    holds("daemons");
}

#[test]
fn panel_with_trigger_keeps_invariants() {
    holds("panel-two-instances");
}

#[test]
fn panel_and_three_daemons_keep_invariants() {
    holds("panel-three-daemons");
    holds("panel-raises-always");
}

#[test]
fn replica_with_lost_commits_is_harmless() {
    holds("fail-over");
}

#[test]
fn each_double_charge_safeguard_suffices() {
    for name in ["lock-alone", "watermark-alone", "key-alone"] {
        holds(name);
    }
}

#[test]
fn each_removed_safeguard_is_missed() {
    for variant in VARIANTS {
        let Some(property) = variant.breaks else { continue };
        let finding = explore(variant, variant.size, 1);
        assert!(finding.broken.contains(&property), "{} should break `{property}`", variant.name);
    }
}

#[test]
fn counterexample_is_printed_step_by_step() {
    let variant = variant("stale-list");
    let steps = shortest(variant, variant.size, "no hour is charged twice").expect("there is one");
    let expected = [
        "hour 0 ends",
        "a daemon makes claim 1",
        "the daemon under claim 1 makes it the newest, and its run begins",
        "the daemon under claim 1 begins a transaction",
        "the daemon under claim 1 locks and reads instance 0",
        "the daemon under claim 1 sends COMMIT and loses the connection",
        "the daemon under claim 1 begins a transaction",
        "the COMMIT in flight arrives",
        "the daemon under claim 1 locks and reads instance 0",
        "the daemon under claim 1 commits",
    ];
    assert_eq!(steps, expected);
}
