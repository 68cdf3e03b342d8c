//! How many instances a transaction bills, and how many transactions run at once: adapted to how fast the database is. Pure.

use std::time::Duration;

/// A payment into a wallet waits for at most one transaction, so it should be short, and yet so long that its overhead does not
/// matter.
const TARGET: Duration = Duration::from_millis(100);
/// On SQLite a payment polls for the end of the transaction, so it waits up to 25 ms longer.
const TARGET_OF_ONE_WRITER: Duration = Duration::from_millis(80);
const FIRST_BATCH: u32 = 2_000;
const BATCHES: std::ops::RangeInclusive<u32> = 250..=10_000;
/// More would take the connections that other jobs need.
pub(super) const MOST_CONNECTIONS: u32 = 4;
/// How many batches per connection are measured before another connection is tried.
const MEASURED: u32 = 3;
/// By how much another connection must increase the speed.
const GAIN: f64 = 1.1;

/// Adapts within a run, and from run to run.
#[derive(Clone, Debug)]
pub(super) struct AdaptiveLimits {
    batch: u32,
    batch_is_fixed: bool,
    /// How long a transaction should take.
    target: Duration,
    connections: u32,
    most_connections: u32,
    /// Whether the number of connections is final.
    settled: bool,
    /// The batches since the number of connections changed, and their instances.
    batches: u32,
    instances: u64,
    /// When the first of them began.
    since: Duration,
    /// Instances a second with one connection fewer.
    before: Option<f64>,
}

impl AdaptiveLimits {
    /// The limits that the configuration sets are fixed. A database with one writer has one connection.
    pub(super) fn new(batch: Option<u32>, connections: Option<u32>, one_writer: bool) -> Self {
        let most = if one_writer { 1 } else { MOST_CONNECTIONS };
        let fixed = connections.map(|connections| connections.clamp(1, most));
        Self {
            batch: batch.unwrap_or(FIRST_BATCH).max(1),
            batch_is_fixed: batch.is_some(),
            target: if one_writer { TARGET_OF_ONE_WRITER } else { TARGET },
            connections: fixed.unwrap_or(1),
            most_connections: most,
            settled: one_writer || fixed.is_some(),
            batches: 0,
            instances: 0,
            since: Duration::ZERO,
            before: None,
        }
    }

    /// About how many instances the next transaction should bill.
    pub(super) fn batch(&self) -> u32 {
        self.batch
    }

    /// How many transactions may run at once.
    pub(super) fn connections(&self) -> usize {
        self.connections as usize
    }

    /// A run begins: measurements before the pause no longer count.
    pub(super) fn begin(&mut self) {
        self.measure_from(Duration::ZERO);
    }

    /// A batch of `instances` is done. It took so long and ended `now`, in time since the run began.
    pub(super) fn done(&mut self, instances: usize, took: Duration, now: Duration) {
        let instances = u32::try_from(instances).unwrap_or(u32::MAX);
        // The last batch of a fleet is too small to measure.
        if instances < self.batch / 2 {
            return;
        }
        if !self.batch_is_fixed {
            let in_time = f64::from(instances) * self.target.as_secs_f64() / took.as_secs_f64().max(1e-6);
            let next = in_time.clamp(f64::from(self.batch) / 2.0, f64::from(self.batch) * 2.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "at most twice the largest batch"
            )]
            let next = next as u32;
            self.batch = next.clamp(*BATCHES.start(), *BATCHES.end());
        }
        self.batches += 1;
        self.instances += u64::from(instances);
        if !self.settled && self.batches >= MEASURED * self.connections {
            self.adapt_connections(now);
        }
    }

    fn adapt_connections(&mut self, now: Duration) {
        let seconds = now.saturating_sub(self.since).as_secs_f64().max(1e-6);
        #[expect(clippy::cast_precision_loss, reason = "a number of instances within one run")]
        let speed = self.instances as f64 / seconds;
        let worse = self.before.is_some_and(|before| speed < before * GAIN);
        if worse {
            // Trying again would cost more than it could gain.
            self.connections -= 1;
            self.settled = true;
        } else if self.connections < self.most_connections {
            self.connections += 1;
            self.before = Some(speed);
        } else {
            self.settled = true;
        }
        self.measure_from(now);
    }

    fn measure_from(&mut self, now: Duration) {
        (self.batches, self.instances, self.since) = (0, 0, now);
    }
}

/// How long the writer of SQLite must pause after it blocked others for `held`, so that every waiting connection polls once
/// meanwhile: SQLite polls again after 1, 2, 5, 10, 15, 20, 25, 25, 25, 50, 50 ms, and then every 100 ms.
pub(super) fn pause_after(held: Duration) -> Duration {
    let poll_interval = match held.as_millis() {
        0..=3 => 5,
        4..=18 => 15,
        19..=128 => 25,
        129..=228 => 50,
        _ => 100,
    };
    Duration::from_millis(poll_interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bills with a database that takes so many microseconds for an instance, and runs up to `useful` connections in parallel.
    fn bill(pace: &mut AdaptiveLimits, instances: u32, micros: u64, useful: u32) {
        let mut left = instances;
        let mut now = Duration::ZERO;
        while left > 0 {
            let batch = pace.batch().min(left);
            left -= batch;
            let connections = u32::try_from(pace.connections()).expect("a few");
            let share = u64::from(connections.div_ceil(useful));
            let took = Duration::from_micros(u64::from(batch) * micros * share);
            now += took / connections;
            pace.done(batch as usize, took, now);
        }
    }

    #[test]
    fn batch_size_targets_a_duration() {
        for (micros, expected, one_writer) in [
            (10, 10_000, false),
            (20, 5_000, false),
            (100, 1_000, false),
            (1_000, 250, false),
            (50, 1_600, true),
        ] {
            let mut pace = AdaptiveLimits::new(None, Some(1), one_writer);
            bill(&mut pace, 100_000, micros, 1);
            assert_eq!(pace.batch(), expected, "{micros} us each");
        }
    }

    #[test]
    fn connections_grow_while_they_help() {
        for (useful, expected) in [(1, 1), (2, 2), (8, 4)] {
            let mut pace = AdaptiveLimits::new(None, None, false);
            bill(&mut pace, 200_000, 20, useful);
            assert_eq!(pace.connections(), expected, "{useful} could be of use");
        }
    }

    #[test]
    fn what_is_configured_stays() {
        let mut pace = AdaptiveLimits::new(Some(123), Some(3), false);
        bill(&mut pace, 100_000, 1_000, 1);
        assert_eq!((pace.batch(), pace.connections()), (123, 3));
    }

    #[test]
    fn sqlite_waiter_polls_during_pause() {
        // As in `sqliteDefaultBusyCallback` of SQLite's main.c.
        let sleeps = [1, 2, 5, 10, 15, 20, 25, 25, 25, 50, 50].into_iter().chain(std::iter::repeat(100));
        for held in 1..2_000 {
            let pause = pause_after(Duration::from_millis(held)).as_millis();
            for first_poll in 0..held {
                let polls = sleeps.clone().scan(first_poll, |at, sleep| {
                    *at += sleep;
                    Some(*at)
                });
                let free = polls.into_iter().find(|at| *at >= held).expect("it polls without limit");
                assert!(
                    u128::from(free) <= u128::from(held) + pause,
                    "held {held} ms, first poll after {first_poll} ms"
                );
            }
        }
    }

    #[test]
    fn one_writer_has_one_connection() {
        let mut pace = AdaptiveLimits::new(None, Some(3), true);
        bill(&mut pace, 100_000, 10, 8);
        assert_eq!(pace.connections(), 1);
    }
}
