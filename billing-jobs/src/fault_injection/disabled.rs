//! What the fault campaign may break, in a build without the feature `testing`: nothing.

use std::future::{Ready, ready};

pub(crate) const fn mutated(_: &str) -> bool {
    false
}

pub(crate) fn linger() -> Ready<()> {
    ready(())
}

pub(crate) const fn batch_begins() {}

pub(crate) const fn before_statement() {}
