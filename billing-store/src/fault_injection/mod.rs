//! The faults that a fault campaign injects. Without the feature `testing`, none of them is compiled.

#[cfg(not(feature = "testing"))]
mod disabled;
#[cfg(feature = "testing")]
mod enabled;

#[cfg(not(feature = "testing"))]
pub(crate) use self::disabled::before_call;
#[cfg(not(feature = "testing"))]
pub use self::disabled::mutated;
#[cfg(feature = "testing")]
pub(crate) use self::enabled::before_call;
#[cfg(feature = "testing")]
pub use self::enabled::{abort_before_call, enable, instead, lock_timeout_ms, mutated, variable, without};
