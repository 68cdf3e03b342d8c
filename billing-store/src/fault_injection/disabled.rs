//! A build without the feature `testing`: every safeguard is in place.

pub(crate) const fn before_call() {}

/// Returns whether the safeguard `name` is removed: always false.
#[must_use]
pub const fn mutated(_name: &str) -> bool {
    false
}
