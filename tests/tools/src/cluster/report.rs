//! The report of a cluster's faults.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;

use super::injections::{Episode, Fault};
use crate::faults::{self, Seconds};

/// The result. Its JSON is one line.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The seed of all random choices.
    pub seed: u64,
    /// The number of injected faults of each kind.
    pub faults: BTreeMap<String, usize>,
    /// Hours that ended.
    pub hours_due: u64,
    /// Of these, the charged ones.
    pub hours_charged: u64,
    /// Of these, the held ones.
    pub hours_held: u64,
    /// Hours that were charged more than once.
    pub double: u64,
    /// Hours that were neither charged nor held.
    pub lost: u64,
    /// Wallets that do not hold what they should.
    pub wallets_off: u64,
    /// Other violated rules, including those of the audit.
    pub violations: u64,
    /// The time in which writes worked and billing charged nothing, of all faults.
    pub share_seconds: Seconds,
    /// The same of each kind of fault.
    pub share_seconds_by_fault: BTreeMap<String, Seconds>,
    /// The time from the fault until writes worked again for good.
    pub writes_back_seconds_by_fault: BTreeMap<String, Seconds>,
    /// Instances that the panel created.
    pub instances: u64,
    /// Wallets that were topped up.
    pub top_ups: u64,
    /// Confirmed transactions of the panel that the cluster lost, which is possible in asynchronous mode only.
    pub lost_by_cluster: u64,
    /// Databases without committed batches that halted billing until the operator accepted them.
    pub accepted_restores: u64,
    /// Each finding in a sentence; the first ones.
    #[serde(skip)]
    pub findings: Vec<String>,
    /// The kinds of fault whose share was longer than its target.
    #[serde(skip)]
    missed: Vec<String>,
}

impl Report {
    pub(super) fn new(counted: faults::Report, episodes: &[Episode]) -> Self {
        let mut by_fault: BTreeMap<Fault, Vec<Episode>> = BTreeMap::new();
        for episode in episodes {
            by_fault.entry(episode.fault).or_default().push(*episode);
        }
        let seconds = |of: &dyn Fn(&Episode) -> Duration| -> BTreeMap<String, Seconds> {
            let of = |episodes: &Vec<Episode>| Seconds::of(episodes.iter().map(of).collect());
            by_fault.iter().map(|(fault, episodes)| (fault.name(), of(episodes))).collect()
        };
        let missed =
            |fault: &&Fault| by_fault[*fault].iter().any(|episode| episode.effect.share > fault.target());
        Self {
            seed: counted.seed,
            faults: by_fault.iter().map(|(fault, episodes)| (fault.name(), episodes.len())).collect(),
            hours_due: counted.hours_due,
            hours_charged: counted.hours_charged,
            hours_held: counted.hours_held,
            double: counted.double,
            lost: counted.lost,
            wallets_off: counted.wallets_off,
            violations: counted.violations,
            share_seconds: Seconds::of(episodes.iter().map(|episode| episode.effect.share).collect()),
            share_seconds_by_fault: seconds(&|episode| episode.effect.share),
            writes_back_seconds_by_fault: seconds(&|episode| episode.effect.writes_back),
            instances: counted.instances,
            top_ups: counted.top_ups,
            lost_by_cluster: 0,
            accepted_restores: 0,
            missed: by_fault.keys().filter(missed).map(|fault| fault.name()).collect(),
            findings: counted.findings,
        }
    }

    /// Whether no hour and no wallet is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.double == 0 && self.lost == 0 && self.wallets_off == 0 && self.violations == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, instances, top_ups, hours_due, hours_charged, hours_held, .. } = self;
        writeln!(
            f,
            "seed {seed}: {instances} instances, {top_ups} top-ups, {hours_due} hours due, {hours_charged} charged, {hours_held} held"
        )?;
        writeln!(
            f,
            "{:<16} {:>5} {:>13} {:>13} {:>13}",
            "fault", "times", "writes back", "share p50", "share max"
        )?;
        for (fault, times) in &self.faults {
            let (back, share) =
                (self.writes_back_seconds_by_fault[fault], self.share_seconds_by_fault[fault]);
            let missed = if self.missed.contains(fault) { "  longer than its target" } else { "" };
            writeln!(
                f,
                "{fault:<16} {times:>5} {:>11.1} s {:>11.1} s {:>11.1} s{missed}",
                back.max, share.p50, share.max
            )?;
        }
        let Seconds { p50, max } = self.share_seconds;
        writeln!(f, "billing's share of all: {p50} s (p50), {max} s at most")?;
        write!(
            f,
            "hours charged twice: {}; lost: {}; wallets off: {}; rules broken: {}; transactions lost by the cluster: {}; \
             accepted restores: {}",
            self.double,
            self.lost,
            self.wallets_off,
            self.violations,
            self.lost_by_cluster,
            self.accepted_restores
        )?;
        self.findings.iter().try_for_each(|finding| write!(f, "\n- {finding}"))
    }
}
