//! Random numbers from a seed.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

/// A generator that depends on the seed and on its purpose alone, so that a simulation does not depend on the order of requests.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, what: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        (seed, what).hash(&mut hasher);
        Self(hasher.finish())
    }

    /// Returns the next number in `0..limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % limit
    }

    /// Returns a duration with a resolution of a nanosecond, so that no two events occur at the same time.
    pub(crate) fn time(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_nanos(from_ms * 1_000_000 + self.below((to_ms - from_ms) * 1_000_000))
    }
}
