//! The report of a campaign.

use std::{fmt, time::Duration};

use serde::Serialize;

/// The result of a campaign. Its JSON is one line.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The seed of all random choices.
    pub seed: u64,
    /// Daemons that were killed.
    pub kills: u64,
    /// Daemons that were suspended for longer than a lease, and resumed.
    pub pauses: u64,
    /// Immediate stops of the server.
    pub restarts: u64,
    /// Connections that the proxy closed.
    pub cuts: u64,
    /// All instances of the campaign.
    pub instances: u64,
    /// Hours that ended while their instance existed.
    pub hours_due: u64,
    /// Of these, the charged ones.
    pub hours_charged: u64,
    /// Of these, the held ones.
    pub hours_held: u64,
    /// Debits that the panel's own biller tried.
    pub panel_attempts: u64,
    /// Of these, the refused ones.
    pub panel_refused: u64,
    /// Of these, the ones that were charged.
    pub panel_charged: u64,
    /// Hours that were charged more than once.
    pub double: u64,
    /// Hours that were neither charged nor held.
    pub lost: u64,
    /// Wallets that do not hold what they should.
    pub wallets_off: u64,
    /// From the kill of a lease's holder to the next claim.
    pub failover_seconds: Seconds,
    /// Other violated rules, including those of the audit.
    pub violations: u64,
    /// Of the refused debits, those that would have written a balance back over a charge or a payment.
    pub panel_overwrites_refused: u64,
    /// Responses to a COMMIT that were dropped.
    pub lost_commits: u64,
    /// Daemons that received SIGTERM.
    pub terminations: u64,
    /// Connections that the server ended on request.
    pub terminated: u64,
    /// Statements that were cancelled as by a timeout.
    pub timeouts: u64,
    /// Wallets that another client held locked for longer than the lock timeout.
    pub locks: u64,
    /// Times that no connection was left.
    pub full_pools: u64,
    /// Anchors that were set back.
    pub set_backs: u64,
    /// Wallets that were topped up.
    pub top_ups: u64,
    /// Plans whose price changed.
    pub plan_changes: u64,
    /// Instances that were made during the campaign.
    pub creations: u64,
    /// Instances that were deleted.
    pub deletions: u64,
    /// Each finding in a sentence; the first ones.
    #[serde(skip)]
    pub findings: Vec<String>,
}

/// A summary of durations, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// Half of them are shorter.
    pub p50: f64,
    /// None is longer.
    pub max: f64,
}

impl Seconds {
    /// The summary of these times.
    #[must_use]
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let seconds =
            |time: Option<&Duration>| time.map_or(0.0, |time| (time.as_secs_f64() * 100.0).round() / 100.0);
        Self { p50: seconds(times.get(times.len() / 2)), max: seconds(times.last()) }
    }
}

impl Report {
    /// Whether everything held.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.double == 0 && self.lost == 0 && self.wallets_off == 0 && self.violations == 0
    }

    pub(crate) fn violate(&mut self, finding: String) {
        self.violations += 1;
        self.find(finding);
    }

    pub(crate) fn find(&mut self, finding: String) {
        const LISTED: usize = 40;
        if self.findings.len() < LISTED {
            self.findings.push(finding);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, instances, hours_due, hours_charged, hours_held, .. } = self;
        writeln!(
            f,
            "seed {seed}: {instances} instances, {hours_due} hours due, {hours_charged} charged, {hours_held} held"
        )?;
        writeln!(
            f,
            "faults: {} kills, {} pauses, {} terminations, {} server restarts, {} cut connections, {} lost commit answers, \
             {} ended connections, {} timeouts, {} held locks, {} full pools",
            self.kills,
            self.pauses,
            self.terminations,
            self.restarts,
            self.cuts,
            self.lost_commits,
            self.terminated,
            self.timeouts,
            self.locks,
            self.full_pools
        )?;
        writeln!(
            f,
            "meanwhile: {} top-ups, {} new prices, {} instances made, {} deleted, {} anchors set back",
            self.top_ups, self.plan_changes, self.creations, self.deletions, self.set_backs
        )?;
        writeln!(
            f,
            "the panel: {} debits tried, {} refused ({} of them for a balance that was read too early), {} charged",
            self.panel_attempts, self.panel_refused, self.panel_overwrites_refused, self.panel_charged
        )?;
        let Seconds { p50, max } = self.failover_seconds;
        writeln!(f, "take-over after a kill: {p50} s (p50), {max} s at most")?;
        write!(
            f,
            "hours charged twice: {}; lost: {}; wallets off: {}; rules broken: {}",
            self.double, self.lost, self.wallets_off, self.violations
        )?;
        self.findings.iter().try_for_each(|finding| write!(f, "\n- {finding}"))
    }
}
