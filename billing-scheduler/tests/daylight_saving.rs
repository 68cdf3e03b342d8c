//! Compares schedules around every clock change of every time zone from 2005 to 2040 with a model that does not search: it visits
//! each minute or second around the change, computes the wall clock, and checks whether the expression matches it.
//!
//! By default, a change that several zones share is checked once; `-- --ignored` checks each zone separately.

use std::{
    collections::{BTreeSet, HashSet},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use billing_scheduler::{
    Dst, DstFold, DstGap, Schedule,
    chrono::{DateTime, Datelike, TimeDelta, Utc, Weekday},
};
use jiff::{Timestamp, tz::TimeZone};

/// An expression, and an independent definition of its meaning.
struct Row {
    text: &'static str,
    fixed: bool,
    /// The resolution of the model, in seconds.
    step: i64,
    /// The checked range around a change, in seconds.
    around: i64,
    names: fn(Local) -> bool,
}

/// The time of a wall clock, in seconds since 1970-01-01 00:00 of the wall clock.
#[derive(Clone, Copy)]
struct Local(i64);

impl Local {
    /// Hour, minute, second.
    fn clock(self) -> (i64, i64, i64) {
        let second = self.0.rem_euclid(86_400);
        (second / 3_600, second / 60 % 60, second % 60)
    }

    fn date(self) -> DateTime<Utc> {
        DateTime::from_timestamp(self.0, 0).expect("in range")
    }
}

const SECONDLY: i64 = 1;
const MINUTELY: i64 = 60;
const DAYS: i64 = 30 * 3_600;
const HOURS: i64 = 4 * 3_600;
const MINUTES: i64 = 75 * 60;

const ROWS: [Row; 17] = [
    row("30 2 * * *", true, MINUTELY, DAYS, |t| t.clock() == (2, 30, 0)),
    row("@daily", true, MINUTELY, DAYS, |t| t.clock() == (0, 0, 0)),
    row("0 0 3 * * *", true, MINUTELY, DAYS, |t| t.clock() == (3, 0, 0)),
    row("0 0,1,2,3 * * *", true, MINUTELY, DAYS, |t| matches!(t.clock(), (0..=3, 0, 0))),
    row("15,45 0-3 * * *", true, MINUTELY, DAYS, |t| matches!(t.clock(), (0..=3, 15 | 45, 0))),
    row("*/20 2 * * *", false, MINUTELY, DAYS, |t| matches!(t.clock(), (2, 0 | 20 | 40, 0))),
    row("30 1 * * SUN", true, MINUTELY, DAYS, |t| {
        t.clock() == (1, 30, 0) && t.date().weekday() == Weekday::Sun
    }),
    row("59 23 L * *", true, MINUTELY, DAYS, |t| {
        t.clock() == (23, 59, 0) && (t.date() + TimeDelta::days(1)).day() == 1
    }),
    row("@hourly", false, MINUTELY, DAYS, |t| matches!(t.clock(), (_, 0, 0))),
    row("30 * * * *", false, MINUTELY, HOURS, |t| matches!(t.clock(), (_, 30, 0))),
    row("*/15 * * * *", false, MINUTELY, HOURS, |t| matches!(t.clock(), (_, 0 | 15 | 30 | 45, 0))),
    row("0 */2 * * *", false, MINUTELY, DAYS, |t| matches!(t.clock(), (hour, 0, 0) if hour % 2 == 0)),
    row("*/20 */29 * * * *", false, SECONDLY, MINUTES, |t| {
        matches!(t.clock(), (_, 0 | 29 | 58, 0 | 20 | 40))
    }),
    row("10,50 59 1 * * *", true, SECONDLY, MINUTES, |t| matches!(t.clock(), (1, 59, 10 | 50))),
    row("7 */30 0-2 1-7 * *", false, SECONDLY, MINUTES, |t| {
        matches!(t.clock(), (0..=2, 0 | 30, 7)) && t.date().day() < 8
    }),
    row("*/20 10,40 0-2 * * *", false, SECONDLY, MINUTES, |t| {
        matches!(t.clock(), (0..=2, 10 | 40, 0 | 20 | 40))
    }),
    row("7 0-40/20 0-2 * * *", true, SECONDLY, MINUTES, |t| matches!(t.clock(), (0..=2, 0 | 20 | 40, 7))),
];

const fn row(text: &'static str, fixed: bool, step: i64, around: i64, names: fn(Local) -> bool) -> Row {
    Row { text, fixed, step, around, names }
}

/// Returns the policies for skipped and repeated times.
fn policies(skipped: bool, repeated: bool) -> Vec<Dst> {
    let gaps = [DstGap::Shift, DstGap::Skip].map(|gap| Dst { gap: Some(gap), fold: None });
    let folds =
        [DstFold::First, DstFold::Last, DstFold::Both].map(|fold| Dst { gap: None, fold: Some(fold) });
    let gaps = gaps.into_iter().filter(|_| skipped);
    let folds = folds.into_iter().filter(|_| repeated);
    [Dst::default()].into_iter().chain(gaps).chain(folds).collect()
}

/// The times of the wall clock of a zone around a change.
struct Walk {
    step: i64,
    /// The instant, the time of the wall clock, and whether this time occurred before and will occur again.
    shown: Vec<(i64, Local, bool, bool)>,
    /// The skipped times, each with the first instant after the gap.
    skipped: Vec<(Local, i64)>,
}

/// The times around a change that match an expression.
struct Named {
    shown: Vec<(i64, bool, bool)>,
    skipped: Vec<i64>,
}

impl Walk {
    fn around(zone: &TimeZone, change: i64, reach: i64, step: i64) -> Self {
        let shown: Vec<(i64, i64)> = (change - reach..=change + reach)
            .step_by(usize::try_from(step).expect("positive"))
            .map(|at| (at, at + offset_at(zone, at)))
            .collect();
        let lowest = shown.iter().map(|(_, local)| *local).min().expect("one at least");
        let highest = shown.iter().map(|(_, local)| *local).max().expect("one at least");
        let place = |local: i64| usize::try_from((local - lowest) / step).expect("not below the lowest");
        let mut first_and_last = vec![None; place(highest) + 1];
        for (at, local) in &shown {
            let (_, last) = first_and_last[place(*local)].get_or_insert((*at, *at));
            *last = *at;
        }
        let mut skipped = Vec::new();
        for pair in shown.windows(2) {
            let [(_, before), (at, local)] = pair else { unreachable!("two of them") };
            let mut gone = before + step;
            while gone < *local {
                skipped.push((Local(gone), *at));
                gone += step;
            }
        }
        let shown = shown.into_iter().map(|(at, local)| {
            let (first, last) = first_and_last[place(local)].expect("it is shown");
            (at, Local(local), first < at, last > at)
        });
        Self { step, shown: shown.collect(), skipped }
    }

    fn named(&self, row: &Row) -> Named {
        let shown = self.shown.iter().filter(|(_, local, ..)| (row.names)(*local));
        let skipped = self.skipped.iter().filter(|(local, _)| (row.names)(*local));
        Named {
            shown: shown.map(|(at, _, before, again)| (*at, *before, *again)).collect(),
            skipped: skipped.map(|(_, at)| *at).collect(),
        }
    }
}

impl Named {
    /// Returns when a job with this policy is due, by definition.
    fn expected(&self, row: &Row, policy: Dst) -> BTreeSet<i64> {
        let gap = policy.gap.unwrap_or(if row.fixed { DstGap::Shift } else { DstGap::Skip });
        let fold = policy.fold.unwrap_or(if row.fixed { DstFold::First } else { DstFold::Both });
        let counts = |(at, before, again): &(i64, bool, bool)| {
            let counts = match fold {
                DstFold::First => !before,
                DstFold::Last => !again,
                DstFold::Both => true,
            };
            counts.then_some(*at)
        };
        let shifted = if gap == DstGap::Shift { self.skipped.as_slice() } else { &[] };
        self.shown.iter().filter_map(counts).chain(shifted.iter().copied()).collect()
    }
}

fn offset_at(zone: &TimeZone, at: i64) -> i64 {
    i64::from(zone.to_offset(Timestamp::from_second(at).expect("in range")).seconds())
}

fn utc(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(second, 0).expect("in range")
}

/// Returns the clock changes: the instant and the zone.
fn changes() -> Vec<(i64, &'static str)> {
    let (first, last) = ("2005-01-01T00:00:00Z", "2041-01-01T00:00:00Z");
    let (first, last): (Timestamp, Timestamp) = (first.parse().expect("valid"), last.parse().expect("valid"));
    let mut all = Vec::new();
    for name in chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name()) {
        let zone = TimeZone::get(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        for transition in zone.following(first).take_while(|transition| transition.timestamp() < last) {
            // The tables of some zones end between two minutes, without a change.
            all.push((transition.timestamp().as_second() / 60 * 60, name));
        }
    }
    all
}

fn check(change: i64, zone_name: &str) {
    let zone = TimeZone::get(zone_name).expect("known");
    // The other half of a repeated time may be outside of the compared range, so the model covers more.
    let walks = [
        Walk::around(&zone, change, DAYS + 25 * 3_600, MINUTELY),
        Walk::around(&zone, change, MINUTES + 3 * 3_600, SECONDLY),
    ];
    for row in &ROWS {
        let walk = walks.iter().find(|walk| walk.step == row.step).expect("one of the two");
        let named = walk.named(row);
        let (begin, end) = (change - row.around, change + row.around);
        for policy in policies(!walk.skipped.is_empty(), walk.shown.iter().any(|(_, _, before, _)| *before)) {
            let schedule = Schedule::cron_with(row.text, zone_name, policy).expect("valid");
            let next_after = |at: i64| match schedule.next_after(utc(at)) {
                Ok(Some(next)) => next.timestamp(),
                other => panic!("{schedule:?} after {}: {other:?}", utc(at)),
            };
            let expected: Vec<_> = named.expected(row, policy).range(begin..=end).copied().collect();
            let mut found = Vec::new();
            let mut at = begin - 1;
            loop {
                let next = next_after(at);
                assert!(next > at, "{schedule:?} goes back from {} to {}", utc(at), utc(next));
                if next > end {
                    break;
                }
                found.push(next);
                at = next;
            }
            assert!(found == expected, "{schedule:?} around {}: {found:?} not {expected:?}", utc(change));
            // The result does not depend on the start of the search.
            for pair in expected.windows(2).filter(|_| policy == Dst::default()) {
                let start = pair[0] + (pair[1] - pair[0]) / 2;
                assert_eq!(next_after(start), pair[1], "{schedule:?} after {}", utc(start));
            }
        }
    }
}

fn check_all(changes: &[(i64, &str)]) {
    // A text is parsed once while a schedule uses it.
    let _known: Vec<_> = ROWS.iter().map(|row| Schedule::cron(row.text, "UTC").expect("valid")).collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some((at, zone)) = changes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(*at, zone);
                }
            });
        }
    });
}

#[test]
fn clock_changes_lose_or_repeat_nothing() {
    let all = changes();
    assert!(all.len() > 14_000, "only {} changes of clocks are known here", all.len());
    // A schedule depends on the offsets of a zone alone: those before and after a change identify it.
    let mut seen = HashSet::new();
    let different: Vec<_> = all
        .into_iter()
        .filter(|(at, name)| {
            let zone = TimeZone::get(name).expect("known");
            let offsets: Vec<i64> = (-56..=56).map(|hours| offset_at(&zone, at + hours * 3_600)).collect();
            seen.insert((*at, offsets))
        })
        .collect();
    assert!(different.len() > 1_000, "only {} different changes", different.len());
    check_all(&different);
}

#[test]
#[ignore = "takes minutes: the test above takes each change once, this one each zone separately"]
fn every_zone_loses_or_repeats_nothing() {
    check_all(&changes());
}
