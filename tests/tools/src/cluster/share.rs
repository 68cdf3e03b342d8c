//! The daemon's share of an outage: how long billing charged nothing although writes worked.

use std::time::Duration;

/// Writes fail while none succeeds for this long on one of the ways; one is tried on each every 100 ms.
pub(super) const OUTAGE: Duration = Duration::from_secs(1);
/// The longest time between two charges that is not an interruption: the schedule is one second.
const CHARGED_EACH: Duration = Duration::from_millis(1_500);

/// A way to the primary that half of the daemons use. The daemon that holds the job may use either, so writes work while they work on
/// both: HAProxy notices a new primary seconds after it accepts writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Proxy,
    Direct,
}

/// When a write last succeeded on each way.
struct LastWrites([Duration; 2]);

impl LastWrites {
    /// Notes a write; returns whether writes worked on both ways until then.
    fn note(&mut self, write: &Write) -> bool {
        let worked = self.work_at(write.at);
        self.0[write.way as usize] = write.at;
        worked
    }

    fn work_at(&self, time: Duration) -> bool {
        self.0.iter().all(|last| time.saturating_sub(*last) < OUTAGE)
    }
}

/// A write of an independent client that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// Since the start of the campaign.
    pub(super) at: Duration,
    pub(super) way: Way,
    /// The newest batch of charges that the client then saw.
    pub(super) newest: i64,
}

/// What a fault did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Effect {
    /// From the fault until writes worked again for good; zero if they always did.
    pub(super) writes_back: Duration,
    /// The longest time in which writes worked and billing charged nothing: from the end of an outage or from the fault to the first
    /// charge, or between two charges later on.
    pub(super) share: Duration,
}

/// The effect of a fault at this time, from the writes that succeeded since then.
pub(super) fn effect(fault: Duration, writes: &[Write]) -> Effect {
    let mut effect = Effect { writes_back: Duration::ZERO, share: Duration::ZERO };
    let Some(first) = writes.first() else { return effect };
    let (mut last, mut newest) = (fault, first.newest);
    let mut ways = LastWrites([fault; 2]);
    // The time without a charge, the outage left out; and whether it began with the fault or with the end of an outage.
    let (mut idle, mut is_first) = (Duration::ZERO, true);
    let mut is_back = false;
    for write in writes {
        if ways.note(write) {
            idle += write.at.saturating_sub(last);
        } else {
            effect.writes_back = write.at.saturating_sub(fault);
            // Before the outage nothing was wrong. After the first return, each moment in which writes work counts.
            if !is_back {
                idle = Duration::ZERO;
            }
            (is_back, is_first) = (true, true);
        }
        last = write.at;
        if write.newest > newest {
            if is_first || idle > CHARGED_EACH {
                effect.share = effect.share.max(idle);
            }
            (idle, is_first, is_back) = (Duration::ZERO, false, false);
        }
        // A primary without the newest batches has lost them.
        newest = write.newest;
    }
    if idle > CHARGED_EACH {
        effect.share = effect.share.max(idle);
    }
    effect
}

/// Whether writes worked and billing charged without an interruption from `since` to `now`.
pub(super) fn is_steady(since: Duration, now: Duration, writes: &[Write]) -> bool {
    let mut charged = since;
    let mut ways = LastWrites([since; 2]);
    for pair in writes.windows(2) {
        if pair[1].at < since {
            continue;
        }
        if !ways.note(&pair[1]) || pair[1].at.saturating_sub(charged) > CHARGED_EACH {
            return false;
        }
        if pair[1].newest > pair[0].newest {
            charged = pair[1].at;
        }
    }
    ways.work_at(now) && now.saturating_sub(charged) < CHARGED_EACH
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes at these tenths of a second; each of the `charges` is seen by the first write after it.
    fn writes(times: impl IntoIterator<Item = u64>, charges: &[u64]) -> Vec<Write> {
        let seen = |tenth: u64| charges.iter().filter(|charge| **charge <= tenth).count();
        let write = |tenth, way| Write {
            at: Duration::from_millis(100 * tenth),
            way,
            newest: i64::try_from(seen(tenth)).expect("a few charges"),
        };
        times.into_iter().flat_map(|tenth| [Way::Proxy, Way::Direct].map(|way| write(tenth, way))).collect()
    }

    #[test]
    fn writes_work_when_both_ways_do() {
        let mut seen = writes(0..99, &[2, 58, 68, 78, 88]);
        // Directly from 2 s on, through HAProxy from 5 s on.
        seen.retain(|write| match write.way {
            Way::Direct => !(500..2_000).contains(&write.at.as_millis()),
            Way::Proxy => !(500..5_000).contains(&write.at.as_millis()),
        });
        let expected = Effect { writes_back: Duration::from_secs(5), share: Duration::from_millis(800) };
        assert_eq!(effect(Duration::ZERO, &seen), expected);
        assert!(!is_steady(Duration::ZERO, Duration::from_secs(6), &seen[..seen.len() - 80]));
    }

    #[test]
    fn effect_counts_idle_time_outside_outages() {
        // Tenths of a second: when writes succeed, when billing charges, the writes' return, the share.
        type Row = (&'static str, Vec<u64>, Vec<u64>, u64, u64);
        let rows: [Row; 7] = [
            ("nothing happens", (0..60).collect(), (0..60).step_by(10).collect(), 0, 10),
            ("billing pauses", (0..90).collect(), vec![5, 50, 60, 70, 80], 0, 45),
            ("billing returns with the writes", (0..5).chain(50..90).collect(), vec![50, 60, 70, 80], 50, 10),
            ("billing returns later", (0..5).chain(50..90).collect(), vec![2, 58, 68, 78], 50, 8),
            // 2 tenths after the first return, then 3 after the second.
            ("writes fail twice", (0..5).chain(50..53).chain(80..99).collect(), vec![83, 93], 80, 5),
            ("billing pauses after its return", (0..5).chain(50..99).collect(), vec![51, 71, 81, 91], 50, 20),
            ("billing does not return", (0..5).chain(50..99).collect(), vec![1], 50, 48),
        ];
        for (name, times, charges, back, share) in rows {
            let tenths = |tenths| Duration::from_millis(100 * tenths);
            let expected = Effect { writes_back: tenths(back), share: tenths(share) };
            assert_eq!(effect(Duration::ZERO, &writes(times, &charges)), expected, "{name}");
        }
    }

    #[test]
    fn lost_batch_is_not_a_charge() {
        let mut seen = writes((0..5).chain(50..99), &[60, 70, 80, 90]);
        for write in &mut seen[..10] {
            write.newest = 3;
        }
        assert_eq!(effect(Duration::ZERO, &seen).share, Duration::from_secs(1));
    }

    #[test]
    fn steady_needs_writes_and_charges() {
        let rows: [(&str, Vec<u64>, Vec<u64>, bool); 5] = [
            ("both", (0..40).collect(), (0..40).step_by(10).collect(), true),
            ("no charge", (0..40).collect(), vec![], false),
            ("charges end", (0..40).collect(), vec![5, 15], false),
            ("charges pause", (0..40).collect(), vec![5, 32], false),
            ("writes pause", (0..10).chain(25..40).collect(), vec![5, 25, 35], false),
        ];
        for (name, times, charges, expected) in rows {
            let steady = is_steady(Duration::ZERO, Duration::from_secs(4), &writes(times, &charges));
            assert_eq!(steady, expected, "{name}");
        }
    }
}
