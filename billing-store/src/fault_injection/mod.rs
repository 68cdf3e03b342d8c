//! The faults that a fault campaign injects. Without the feature `testing`, none of them is compiled.

#[cfg(not(feature = "testing"))]
mod disabled;
#[cfg(feature = "testing")]
mod enabled;

#[cfg(not(feature = "testing"))]
pub use self::disabled::mutated;
#[cfg(feature = "testing")]
pub use self::enabled::{enable, instead, lock_timeout_ms, mutated, variable, without};
