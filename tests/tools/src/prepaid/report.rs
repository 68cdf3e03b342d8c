//! The report of a campaign of the prepaid policy.

use std::{fmt, time::Duration};

use serde::Serialize;

/// The result of a campaign. Its JSON is one line.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The seed of all random choices.
    pub seed: u64,
    /// All customers of the campaign.
    pub customers: u64,
    /// Payments of customers.
    pub payments: u64,
    /// Times that all daemons were down.
    pub outages: u64,
    /// Daemons that were killed alone.
    pub kills: u64,
    /// Daemons that were suspended for longer than a lease.
    pub pauses: u64,
    /// Connections that the proxy closed.
    pub cuts: u64,
    /// Responses to a COMMIT that were dropped.
    pub lost_commits: u64,
    /// Notices that the mail server accepted.
    pub notices: u64,
    /// Orders to suspend that the panel carried out.
    pub suspended: u64,
    /// Orders to resume that the panel carried out.
    pub resumed: u64,
    /// Attempts that a receiver did not accept.
    pub refused: u64,
    /// Notices of one level that were sent twice in an episode, and orders that repeat the one before.
    pub twice: u64,
    /// Suspensions without two notices that the mail server had accepted, the oldest six hours before.
    pub stopped_unwarned: u64,
    /// Suspensions within the grace period after an outage, and of customers who had paid during one.
    pub stopped_by_outage: u64,
    /// Suspensions that were decided after the customer had paid.
    pub stopped_paid: u64,
    /// Events that were sent again although the receiver had accepted them, without a fault.
    pub repeated: u64,
    /// Notices that are stored and neither accepted nor rejected by the mail server.
    pub notices_lost: u64,
    /// From a payment until the panel resumes: half of them take less. Times in which no daemon runs or the panel fails do not count.
    pub resume_p50_ms: u64,
    /// The time that 99 of 100 do not exceed.
    pub resume_p99_ms: u64,
    /// Other violated rules, including those of the audit.
    pub violations: u64,
    /// Each finding in a sentence; the first ones.
    #[serde(skip)]
    pub findings: Vec<String>,
}

impl Report {
    /// The longest time that 99 of 100 customers may wait after a payment.
    pub const RESUME_LIMIT: Duration = Duration::from_secs(70);

    /// Whether everything held.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let broken = [
            self.twice,
            self.stopped_unwarned,
            self.stopped_by_outage,
            self.stopped_paid,
            self.repeated,
            self.notices_lost,
            self.violations,
        ];
        broken == [0; 7] && Duration::from_millis(self.resume_p99_ms) < Self::RESUME_LIMIT
    }

    /// Notes the times from payments to resumes.
    pub(super) fn set_resumes(&mut self, mut times: Vec<Duration>) {
        times.sort_unstable();
        let ms = |time: Option<&Duration>| {
            time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
        };
        self.resume_p50_ms = ms(times.get(times.len() / 2));
        self.resume_p99_ms = ms(times.get((times.len() * 99).div_ceil(100).saturating_sub(1)));
    }

    pub(super) fn violate(&mut self, finding: String) {
        self.violations += 1;
        self.find(finding);
    }

    pub(super) fn find(&mut self, finding: String) {
        const LISTED: usize = 40;
        if self.findings.len() < LISTED {
            self.findings.push(finding);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {} customers, {} payments", self.seed, self.customers, self.payments)?;
        writeln!(
            f,
            "faults: {} outages, {} kills, {} pauses, {} cut connections, {} lost commit answers, {} refused attempts",
            self.outages, self.kills, self.pauses, self.cuts, self.lost_commits, self.refused
        )?;
        writeln!(
            f,
            "sent: {} notices, {} suspended, {} resumed; resumed after {} ms (p50), {} ms (p99)",
            self.notices, self.suspended, self.resumed, self.resume_p50_ms, self.resume_p99_ms
        )?;
        write!(
            f,
            "twice: {}; stopped unwarned: {}, by an outage: {}, paid: {}; repeated: {}; notices lost: {}; rules broken: {}",
            self.twice,
            self.stopped_unwarned,
            self.stopped_by_outage,
            self.stopped_paid,
            self.repeated,
            self.notices_lost,
            self.violations
        )?;
        self.findings.iter().try_for_each(|finding| write!(f, "\n- {finding}"))
    }
}
