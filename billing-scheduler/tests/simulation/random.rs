//! Random numbers from a seed.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

/// Random numbers that depend on the seed and on what it is for, and on nothing else: so a story does not change its course with the
/// order in which things are asked.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64, what: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        (seed, what).hash(&mut hasher);
        Self(hasher.finish())
    }

    /// One of `0..sides`, another one each time.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % sides
    }

    /// Some time, to the nanosecond, so that no two things happen at once.
    pub(crate) fn time(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_nanos(from_ms * 1_000_000 + self.roll((to_ms - from_ms) * 1_000_000))
    }
}
