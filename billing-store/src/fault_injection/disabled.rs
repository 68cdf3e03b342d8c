//! A build without the feature `testing`: every safeguard is in place.

/// Returns whether the safeguard `name` is removed: always false.
#[must_use]
pub const fn mutated(_name: &str) -> bool {
    false
}
