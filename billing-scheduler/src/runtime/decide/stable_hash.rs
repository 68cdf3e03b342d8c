//! A hash that is identical on every host and in every release: for delays that all daemons must agree on.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// A hash of a job's name, a scheduled time and an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StableHash(u64);

impl StableHash {
    pub(crate) fn of(job: &str, scheduled_at: DateTime<Utc>, attempt: u32) -> Self {
        // FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/. The standard library's hash may change between releases, and daemons
        // of two releases run at the same time during an upgrade.
        let time = scheduled_at.timestamp().to_le_bytes();
        let bytes = job.bytes().chain(time).chain(attempt.to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        // The last bytes hardly affect the upper bits, which `below` uses; the finalizer of MurmurHash3 mixes them.
        let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        Self(mixed ^ (mixed >> 33))
    }

    /// Returns a duration from zero to `limit`, exclusive, in whole milliseconds.
    pub(crate) fn below(self, limit: Duration) -> Duration {
        let millis = (u128::from(self.0) * limit.as_millis()) >> 64;
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_hash_is_even_and_fixed() {
        let limit = Duration::from_secs(10);
        let mut tenths = [0_u32; 10];
        for second in 0..10_000 {
            let at = DateTime::from_timestamp(1_767_225_600 + second * 60, 0).expect("in range");
            let delay = StableHash::of("billing", at, 0).below(limit);
            tenths[usize::try_from(delay.as_secs()).expect("below ten")] += 1;
        }
        assert!(tenths.iter().all(|count| (850..1_150).contains(count)), "{tenths:?}");
        let at = DateTime::from_timestamp(1_767_225_600, 0).expect("in range");
        // A change of this value breaks the agreement between daemons of two releases.
        assert_eq!(StableHash::of("billing", at, 0).below(limit), Duration::from_millis(3_608));
        assert_ne!(StableHash::of("billing", at, 0), StableHash::of("heartbeat", at, 0));
        assert_ne!(StableHash::of("billing", at, 0), StableHash::of("billing", at, 1));
        assert_eq!(StableHash::of("billing", at, 0).below(Duration::ZERO), Duration::ZERO);
    }
}
