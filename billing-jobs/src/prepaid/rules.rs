//! The rules of the prepaid policy: when a customer is notified, suspended and resumed.

use std::{cmp::Reverse, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::window::Window;
use crate::period::{HOUR, Micros};

/// How many notices of the episode are delivered before a suspension.
const NOTICES_NEEDED: usize = 2;
/// How old the oldest of them is then.
const NOTICE_AGE: Micros = 6 * HOUR;
/// How long before the end of the grace period the final notice is sent.
const FINAL_LEAD: Micros = 6 * HOUR;

/// What the policy may do. Each mode includes the ones before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Evaluate and record, and send nothing.
    #[default]
    Watch,
    /// Send notices as well.
    Notify,
    /// Send orders to suspend and to resume as well.
    Enforce,
}

/// The urgency of a notice: the hours of runway at which it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(pub i32);

impl Level {
    /// The wallet does not cover the next hour.
    pub const EXHAUSTED: Self = Self(0);
    /// The least number of hours at which a notice does not wait for the end of the quiet hours.
    pub(super) const LAST_HOUR: Self = Self(1);
    /// The last notice before a suspension.
    pub const FINAL: Self = Self(-1);
}

/// The rules for all organizations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    levels: Vec<Level>,
    /// The hours of runway from which a new episode begins.
    pub recovered_hours: i64,
    /// How long an exhausted wallet is tolerated while billing works.
    pub grace: Micros,
    /// The hours of runway with which a suspended organization is resumed.
    pub resume_hours: i64,
    /// How many delivered notices a suspension needs.
    pub notices_needed: usize,
    /// The age of the oldest of them.
    pub notice_age: Micros,
    /// How long before a suspension the final notice is sent.
    pub final_lead: Micros,
    /// When notices that are not urgent wait.
    pub quiet: Option<Window>,
    /// When instances may be suspended; at any time by default.
    pub window: Option<Window>,
}

impl Rules {
    /// The rules with notices at these hours of runway, in any order.
    #[must_use]
    pub fn new(notice_hours: &[u16], grace: Micros, resume_hours: i64) -> Self {
        let mut levels: Vec<Level> = notice_hours.iter().map(|hours| Level(i32::from(*hours))).collect();
        levels.sort_unstable_by_key(|level| Reverse(*level));
        let highest = levels.first().map_or(0, |level| i64::from(level.0));
        Self {
            levels,
            recovered_hours: (highest * 5 + 3) / 4,
            grace,
            resume_hours,
            notices_needed: NOTICES_NEEDED,
            notice_age: NOTICE_AGE,
            final_lead: FINAL_LEAD.min(grace),
            quiet: None,
            window: None,
        }
    }

    /// The levels with hours of runway, the least urgent first.
    #[must_use]
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// The hours of runway below which an organization is checked every minute.
    #[must_use]
    pub fn watched_hours(&self) -> i64 {
        // The margin is as long as the interval between two checks of the whole fleet, with some runs that fail.
        self.recovered_hours + 6
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::new(&[72, 24, 1], 24 * HOUR, 1)
    }
}

/// The microseconds of a duration.
pub(super) fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

/// How an organization pays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyMode {
    /// The rules apply.
    #[default]
    Prepaid,
    /// It pays invoices: it is neither notified nor suspended.
    Postpaid,
    /// It is notified and never suspended.
    Exempt,
}

impl PolicyMode {
    /// Every mode, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Prepaid, Self::Postpaid, Self::Exempt];

    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepaid => "prepaid",
            Self::Postpaid => "postpaid",
            Self::Exempt => "exempt",
        }
    }
}

/// What applies to one organization alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// How the organization pays.
    pub mode: PolicyMode,
    /// The organization is not suspended before this time.
    pub never_suspend_until: Option<Micros>,
}

impl Policy {
    /// Whether the organization is never suspended.
    #[must_use]
    pub fn is_exempt(&self) -> bool {
        self.mode != PolicyMode::Prepaid
    }

    /// Whether the organization may be suspended at `now`.
    #[must_use]
    pub fn allows_suspension(&self, now: Micros) -> bool {
        !self.is_exempt() && self.never_suspend_until.is_none_or(|until| until <= now)
    }
}
