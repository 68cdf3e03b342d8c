//! The types of events.

use super::{decide::Desired, rules::Level};

pub(super) const LOW: &str = "billing.wallet.low";
pub(super) const EXHAUSTED: &str = "billing.wallet.exhausted";
pub(super) const FINAL_NOTICE: &str = "billing.wallet.final_notice";
pub(super) const RECOVERED: &str = "billing.wallet.recovered";
pub(super) const SUSPEND: &str = "billing.service.suspend";
pub(super) const RESUME: &str = "billing.service.resume";
pub(super) const PROBLEM_APPEARED: &str = "billing.problem.appeared";
pub(super) const PROBLEM_CLEARED: &str = "billing.problem.cleared";
/// The type of an event that only tests an endpoint; it is not stored.
pub const TEST: &str = "billing.test";

/// The types of events.
pub const TYPES: [&str; 8] =
    [LOW, EXHAUSTED, FINAL_NOTICE, RECOVERED, SUSPEND, RESUME, PROBLEM_APPEARED, PROBLEM_CLEARED];

/// Whether events of this type concern operators, and no customer.
pub(super) fn is_for_operators(kind: &str) -> bool {
    kind.starts_with("billing.problem.")
}

/// The type of the event that sends a notice of this level.
#[must_use]
pub fn notice_type(level: Level) -> &'static str {
    match level {
        Level::EXHAUSTED => EXHAUSTED,
        Level::FINAL => FINAL_NOTICE,
        Level(_) => LOW,
    }
}

/// The type of the event that orders this.
#[must_use]
pub fn order_type(desired: Desired) -> &'static str {
    match desired {
        Desired::Running => RESUME,
        Desired::Suspended => SUSPEND,
    }
}
