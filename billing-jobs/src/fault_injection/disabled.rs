//! A build without the feature `testing`: every safeguard is in place.

use std::time::Duration;

pub(crate) const fn mutated(_: &str) -> bool {
    false
}

pub(crate) const fn billing_interval(configured: Duration) -> Duration {
    configured
}

pub(crate) const fn scaled(duration: Duration) -> Duration {
    duration
}
