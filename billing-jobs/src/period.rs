//! Which hours are due, and which rate each of them has.

use serde::{Deserialize, Serialize};

use crate::money::{Carry, HourlyRate, Money, Rate, WalletUnit, cost};

/// Microseconds since 1970-01-01T00:00:00Z.
pub type Micros = i64;

/// Microseconds in an hour.
pub const HOUR: Micros = 3_600_000_000;

/// How many whole hours lie between `start` and `now`; 0 if `start` is in the future.
#[must_use]
pub fn whole_hours(start: Micros, now: Micros) -> i64 {
    (i128::from(now) - i128::from(start))
        .max(0)
        .try_into()
        .map_or(i64::MAX / HOUR, |elapsed: i64| elapsed / HOUR)
}

/// Hours in a row at one rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateSpan {
    /// The number of these hours.
    pub hours: i64,
    /// The rate of each.
    pub rate: HourlyRate,
}

/// A rate that replaced another one. In JSON it is `[seen_at, total, backup]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Micros, Rate, Rate)", into = "(Micros, Rate, Rate)")]
pub struct Change {
    /// When it was first seen.
    pub seen_at: Micros,
    /// The new rate.
    pub rate: HourlyRate,
}

impl From<(Micros, Rate, Rate)> for Change {
    fn from((seen_at, total, backup): (Micros, Rate, Rate)) -> Self {
        Self { seen_at, rate: HourlyRate { total, backup } }
    }
}

impl From<Change> for (Micros, Rate, Rate) {
    fn from(Change { seen_at, rate: HourlyRate { total, backup } }: Change) -> Self {
        (seen_at, total, backup)
    }
}

/// The rates of an instance from its watermark on: one in force, and later ones with the time when each was first seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Of the first hour that is not billed.
    pub first: HourlyRate,
    /// Oldest first. An hour that ended before a rate was first seen keeps the older one.
    pub changes: Vec<Change>,
}

impl Rates {
    /// One rate without a change.
    #[must_use]
    pub fn constant(rate: HourlyRate) -> Self {
        Self { first: rate, changes: Vec::new() }
    }

    /// Notes that `rate` is in force at `now`.
    pub fn see(&mut self, rate: HourlyRate, now: Micros) {
        if self.latest() != rate {
            self.changes.push(Change { seen_at: now, rate });
        }
    }

    /// The rate that was seen last.
    #[must_use]
    pub fn latest(&self) -> HourlyRate {
        self.changes.last().map_or(self.first, |change| change.rate)
    }

    /// The highest rate that an hour which ends after `time` can have.
    #[must_use]
    pub fn highest_after(&self, time: Micros) -> Rate {
        let in_force = self.changes.iter().rev().take_while(|change| change.seen_at > time);
        let replaced = self.changes.len() - in_force.clone().count();
        // Of the rates that were seen before, only the last one still applies.
        let before = replaced.checked_sub(1).map_or(self.first, |last| self.changes[last].rate);
        in_force.map(|change| change.rate.total).fold(before.total, Rate::max)
    }

    /// What `hours` from `start` on cost on top of `carry`; `None` if that is too large for a wallet.
    #[must_use]
    pub fn cost(&self, start: Micros, hours: i64, carry: Carry, unit: WalletUnit) -> Option<Money> {
        let (mut total, mut carry) = (0_i64, carry);
        for span in self.rate_spans(start, hours) {
            let (amount, rest) = cost(span.rate.total, span.hours, carry, unit)?;
            total = total.checked_add(amount.0)?;
            carry = rest;
        }
        Some(Money(total))
    }

    /// Splits `hours` from `start` on into spans of one rate.
    pub fn rate_spans(&self, start: Micros, hours: i64) -> impl Iterator<Item = RateSpan> + '_ {
        let end = start.saturating_add(hours.saturating_mul(HOUR));
        let mut from = start;
        let bounds = self.changes.iter().map(|change| (change.seen_at, Some(change.rate)));
        let mut rate = self.first;
        bounds.chain([(Micros::MAX, None)]).filter_map(move |(seen_at, next)| {
            // The last hour that ended when the new rate was seen is the last one at the old rate.
            // Of a start before 1970 the end of time is more than `Micros::MAX` away.
            let ended = seen_at.saturating_sub(start).max(0) / HOUR * HOUR;
            let until = start.saturating_add(ended).min(end);
            let span = RateSpan { hours: (until - from).max(0) / HOUR, rate };
            from = from.max(until);
            rate = next.unwrap_or(rate);
            (span.hours > 0).then_some(span)
        })
    }

    /// What remains to be known when everything before `billed_through` is billed.
    pub fn forget_before(&mut self, billed_through: Micros) {
        let next_end = billed_through.saturating_add(HOUR);
        let settled = self.changes.iter().take_while(|change| change.seen_at < next_end).count();
        if let Some(last) = self.changes.drain(..settled).next_back() {
            self.first = last.rate;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_hours_are_due() {
        let rows = [
            (0, HOUR - 1, 0),
            (0, HOUR, 1),
            (5, 2 * HOUR + 4, 1),
            (HOUR, 0, 0),
            (i64::MIN, i64::MAX, i64::MAX / HOUR),
        ];
        for (start, now, hours) in rows {
            assert_eq!(whole_hours(start, now), hours, "from {start} to {now}");
        }
    }

    fn constant(rate: i64) -> Rates {
        Rates::constant(Rate(rate).into())
    }

    fn split(rates: &Rates, start_h: i64, hours: i64) -> Vec<(i64, i64)> {
        rates.rate_spans(start_h * HOUR, hours).map(|span| (span.hours, span.rate.total.0)).collect()
    }

    #[test]
    fn past_hours_keep_their_price() {
        let mut rates = constant(10);
        assert_eq!(split(&rates, 0, 5), [(5, 10)]);
        // Seen in the middle of the fourth hour: that hour has not ended, so it has the new rate.
        rates.see(Rate(20).into(), 3 * HOUR + 1);
        assert_eq!(split(&rates, 0, 5), [(3, 10), (2, 20)]);
        assert_eq!(split(&rates, 0, 3), [(3, 10)]);
        rates.see(Rate(20).into(), 4 * HOUR);
        rates.see(Rate(30).into(), 4 * HOUR + 1);
        assert_eq!(split(&rates, 0, 6), [(3, 10), (1, 20), (2, 30)]);
        rates.forget_before(4 * HOUR);
        assert_eq!(rates, constant(30));
    }

    #[test]
    fn rate_seen_at_hour_end_applies_later() {
        let mut rates = constant(10);
        rates.see(Rate(20).into(), 3 * HOUR);
        assert_eq!(split(&rates, 0, 4), [(3, 10), (1, 20)]);
        rates.forget_before(HOUR);
        assert_eq!(rates.changes.len(), 1, "two hours at the old rate are still to be billed");
        rates.forget_before(3 * HOUR);
        assert_eq!(rates, constant(20));
    }

    #[test]
    fn two_changes_within_an_hour_count_once() {
        let mut rates = constant(10);
        rates.see(Rate(20).into(), HOUR + 1);
        rates.see(Rate(30).into(), HOUR + 2);
        assert_eq!(split(&rates, 0, 3), [(1, 10), (2, 30)]);
    }

    #[test]
    fn changes_of_the_parts_alone_are_kept() {
        let rate = |total, backup| HourlyRate { total: Rate(total), backup: Rate(backup) };
        let mut rates = Rates::constant(rate(10, 2));
        rates.see(rate(10, 2), HOUR);
        rates.see(rate(10, 4), 2 * HOUR);
        let spans: Vec<_> = rates.rate_spans(0, 3).map(|span| (span.hours, span.rate)).collect();
        assert_eq!(spans, [(2, rate(10, 2)), (1, rate(10, 4))]);
        let json = serde_json::to_string(&rates.changes).expect("integers are always JSON");
        assert_eq!(json, "[[7200000000,10,4]]");
        assert_eq!(serde_json::from_str::<Vec<Change>>(&json).expect("ours"), rates.changes);
    }
}
