//! What a run, or a part of it, has done so far.

use std::collections::BTreeMap;

use billing_scheduler::StopReason;

use super::{
    BeyondLimit,
    findings::{Findings, LISTED},
    id::Id,
    model::Posting,
    totals::Totals,
};
use crate::{currency::Currency, hold::Reason, uncharged::Debt};

/// What a run, or a part of it, has done so far.
#[derive(Default)]
pub(super) struct RunSummary {
    pub(super) totals: Totals,
    /// Instances with more hours than the catch-up limit, if they are listed.
    pub(super) beyond_limit: Vec<BeyondLimit>,
    /// Why batches were not posted.
    pub(super) unposted: Vec<String>,
    /// Rows that cannot be read.
    pub(super) unreadable: Findings,
    /// Why the run stopped before the end of the fleet.
    pub(super) stopped: Option<StopReason>,
    /// Hours that a previous organization could not pay.
    pub(super) uncollected: Debt,
    /// The instances that an organization pays from now on.
    pub(super) transferred: BTreeMap<Id, Vec<Id>>,
}

impl RunSummary {
    /// What one posting did.
    pub(super) fn of(posting: Posting<'_>) -> Self {
        let mut summary = Self { totals: posting.totals, ..Self::default() };
        let uncollected =
            posting.holds.iter().filter(|hold| hold.reason == Reason::InstanceTransferred.as_str());
        for hold in uncollected {
            let currency = hold.currency.unwrap_or(Currency::NONE);
            summary.uncollected.add(hold.hours.unwrap_or_default(), hold.amount, currency);
        }
        for (organization, instance) in posting.transferred {
            summary.transferred.entry(organization).or_default().push(instance);
        }
        summary
    }

    pub(super) fn add(&mut self, part: Self) {
        self.totals += part.totals;
        self.beyond_limit.extend(part.beyond_limit);
        self.unposted.extend(part.unposted);
        self.unreadable.extend(part.unreadable, LISTED);
        self.stopped = self.stopped.or(part.stopped);
        self.uncollected += part.uncollected;
        for (organization, instances) in part.transferred {
            self.transferred.entry(organization).or_default().extend(instances);
        }
    }
}
