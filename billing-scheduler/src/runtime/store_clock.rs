//! The clock that a scheduler follows: the host's clock, corrected by the store's.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

use super::store::{Store, StoreError};
use crate::clock::Clock;

/// A correction ends when the clocks differ by less than this. Without the distance to [`StoreClock::TOLERANCE`], a clock that is about five
/// seconds wrong would be corrected and not corrected in turn.
const AGREEMENT: TimeDelta = TimeDelta::milliseconds(2_500);
/// A reading that is less certain is used only if it is the first one or proves that this clock is wrong.
const CERTAIN: TimeDelta = TimeDelta::milliseconds(500);

/// The host's clock, corrected by the clock of the store if the two differ by more than five seconds. Every process on the same
/// store then follows the same schedule, however wrong the clock of its host is.
///
/// A [`Scheduler`](crate::Scheduler) corrects the clock that it is given. Another program that works with the same store, such as a
/// command, creates this clock and calls [`StoreClock::synchronize`].
///
/// Between two readings it counts on the monotonic clock, so a host's clock that is set has no effect, not even until the next
/// reading.
#[derive(Debug)]
pub struct StoreClock {
    host: Arc<dyn Clock>,
    /// Empty until the store shows a time, which a store that uses the clock of the host never does: then no lock is taken.
    reading: OnceLock<Mutex<Reading>>,
}

/// The last reading of the store's clock.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// What this clock showed, and when that was by the monotonic clock.
    wall: DateTime<Utc>,
    monotonic: Duration,
    /// The measured difference between the store's clock and the host's, and the part of it that this clock adds.
    offset: TimeDelta,
    correction: TimeDelta,
    /// The latest time that the store's clock has shown.
    latest: DateTime<Utc>,
}

impl Reading {
    fn at(&self, monotonic: Duration) -> DateTime<Utc> {
        (self.wall + monotonic.saturating_sub(self.monotonic)).trunc_subsecs(6)
    }
}

impl StoreClock {
    /// A smaller difference between two clocks is not corrected. It also limits the remaining error of a correction.
    pub const TOLERANCE: TimeDelta = TimeDelta::seconds(5);

    /// Returns a clock that shows the time of `host` until it is synchronized.
    #[must_use]
    pub fn new(host: Arc<dyn Clock>) -> Self {
        Self { host, reading: OnceLock::new() }
    }

    /// Reads the clock of `store` once. A store that uses the clock of this host changes nothing.
    pub async fn synchronize(&self, store: &dyn Store) -> Result<(), StoreError> {
        let sent = self.monotonic();
        if let Some(now) = store.poll(None).await?.now {
            self.observe(sent, now);
        }
        Ok(())
    }

    /// Takes the time `now` that a store returned to a request that was sent at `sent` by the monotonic clock. Returns the
    /// correction if it has changed.
    pub fn observe(&self, sent: Duration, now: DateTime<Utc>) -> Option<TimeDelta> {
        let (host, monotonic) = (self.host.now(), self.host.monotonic());
        // The store read its clock between the request and the answer.
        let uncertainty = TimeDelta::from_std(monotonic.saturating_sub(sent) / 2).ok()?;
        let offset = now + uncertainty - host;
        let mut previous = self.reading();
        let before = previous.as_deref().map_or(TimeDelta::zero(), |reading| reading.correction);
        let correction = corrected(before, offset, uncertainty);
        if previous.is_some() && correction == before && uncertainty > CERTAIN {
            return None;
        }
        let latest = previous.as_deref().map_or(now, |reading| reading.latest.max(now));
        let reading = Reading { wall: host + correction, monotonic, offset, correction, latest };
        match &mut previous {
            Some(previous) => **previous = reading,
            None => drop(self.reading.set(Mutex::new(reading))),
        }
        (correction != before).then_some(correction)
    }

    /// Whether the store's clock has shown `at`, which may be in the future because that clock was set back.
    pub(crate) fn has_reached(&self, at: DateTime<Utc>) -> bool {
        self.reading().is_some_and(|reading| at <= reading.latest + Self::TOLERANCE)
    }

    fn reading(&self) -> Option<MutexGuard<'_, Reading>> {
        self.reading.get().map(|reading| reading.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns what a clock adds to the host's after a reading, if it added `before` until then.
fn corrected(before: TimeDelta, offset: TimeDelta, uncertainty: TimeDelta) -> TimeDelta {
    let is_wrong = (offset - before).abs() > StoreClock::TOLERANCE + uncertainty;
    let host_is_right = offset.abs() + uncertainty < AGREEMENT;
    if is_wrong && offset.abs() > StoreClock::TOLERANCE {
        offset
    } else if is_wrong || host_is_right {
        TimeDelta::zero()
    } else {
        before
    }
}

#[async_trait]
impl Clock for StoreClock {
    fn now(&self) -> DateTime<Utc> {
        let reading = self.reading().map(|reading| *reading);
        reading.map_or_else(|| self.host.now(), |reading| reading.at(self.host.monotonic()))
    }

    fn monotonic(&self) -> Duration {
        self.host.monotonic()
    }

    async fn sleep(&self, duration: Duration) {
        self.host.sleep(duration).await;
    }

    fn offset(&self) -> Option<TimeDelta> {
        self.reading().map(|reading| reading.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn correction_has_hysteresis() {
        let rows = [
            // (correction before, offset, uncertainty, correction after), in milliseconds
            (0, 4_900, 0, 0),
            (0, 5_100, 0, 5_100),
            (0, -5_100, 0, -5_100),
            (0, 5_100, 200, 0),
            // It stays while the clocks drift, up to the tolerance, and does not end before the clocks agree.
            (5_100, 4_900, 0, 5_100),
            (5_100, 2_600, 0, 5_100),
            (5_100, 2_400, 0, 0),
            (5_100, 2_400, 200, 5_100),
            (7_200_000, 7_204_900, 0, 7_200_000),
            (7_200_000, 7_205_100, 0, 7_205_100),
            // The host's clock or the store's was set.
            (7_200_000, -4_000, 0, 0),
            (7_200_000, -7_200_000, 0, -7_200_000),
            // A slow answer proves less.
            (0, 7_200_000, 30_000, 7_200_000),
            (0, 30_000, 30_000, 0),
        ];
        for (before, offset, uncertainty, after) in rows {
            let found = corrected(
                TimeDelta::milliseconds(before),
                TimeDelta::milliseconds(offset),
                TimeDelta::milliseconds(uncertainty),
            );
            assert_eq!(found.num_milliseconds(), after, "{before}, {offset}, {uncertainty}");
        }
    }

    /// Returns a host's clock, and a clock on it that has seen a store whose clock is `ahead` of it.
    fn clocks(ahead: TimeDelta) -> (ManualClock, StoreClock) {
        let host = ManualClock::at(DateTime::UNIX_EPOCH + TimeDelta::days(1));
        let clock = StoreClock::new(Arc::new(host.clone()));
        assert_eq!((clock.now(), clock.offset()), (host.now(), None));
        clock.observe(clock.monotonic(), host.now() + ahead);
        (host, clock)
    }

    #[test]
    fn half_of_round_trip_is_subtracted() {
        let (host, clock) = clocks(TimeDelta::zero());
        let sent = clock.monotonic();
        host.advance(Duration::from_millis(400));
        let at_store = host.now() + TimeDelta::hours(2);
        host.advance(Duration::from_millis(400));
        assert_eq!(clock.observe(sent, at_store), Some(TimeDelta::hours(2)));
        assert_eq!(clock.now() - host.now(), TimeDelta::hours(2));
        assert_eq!(clock.offset(), Some(TimeDelta::hours(2)));
    }

    #[test]
    fn slow_answer_that_proves_nothing_is_ignored() {
        let (host, clock) = clocks(TimeDelta::zero());
        let sent = clock.monotonic();
        host.advance(Duration::from_secs(20));
        assert_eq!(clock.observe(sent, host.now()), None);
        assert_eq!(clock.offset(), Some(TimeDelta::zero()), "the last certain reading is kept");
        assert_eq!(clock.now(), host.now());
    }

    #[test]
    fn set_host_clock_has_no_effect() {
        let (host, clock) = clocks(TimeDelta::hours(2));
        let began = clock.now();
        for hours in [5, -9, 0] {
            host.set_wall(clock.now() + TimeDelta::hours(hours));
            host.advance(Duration::from_secs(1));
            let passed = clock.now() - began;
            clock.observe(clock.monotonic(), clock.now());
            assert_eq!(clock.now() - began, passed, "nor has the next reading");
        }
        assert_eq!(clock.now() - began, TimeDelta::seconds(3));
    }

    #[test]
    fn set_store_clock_is_followed() {
        let (host, clock) = clocks(TimeDelta::zero());
        let latest = host.now();
        assert!(clock.has_reached(latest) && !clock.has_reached(latest + TimeDelta::minutes(1)));
        assert_eq!(
            clock.observe(clock.monotonic(), latest - TimeDelta::hours(2)),
            Some(TimeDelta::hours(-2))
        );
        assert_eq!(clock.now(), latest - TimeDelta::hours(2));
        assert!(clock.has_reached(latest), "the store showed it before its clock was set back");
    }
}
