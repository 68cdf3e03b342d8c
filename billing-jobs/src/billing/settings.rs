//! The settings and options of a billing run, and its report.

use std::{collections::BTreeMap, time::Duration};

use billing_scheduler::{FencingToken, StopReason};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{FindingsByKind, Scope, Totals, TotalsByCurrency, model::BeyondLimitRow, spike::Spike};
use crate::{
    currency::Currency,
    money::Money,
    price::{Backups, DailyBackupFactor, SeenRate},
    uncharged::Uncharged,
};

/// How long billing must fail before the panel may bill, unless the configuration sets another time.
pub const HAND_BACK_AFTER: Duration = Duration::from_mins(75);

/// How a fleet is billed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BillingSettings {
    /// An instance with more due hours is held until approved.
    pub max_catch_up_hours: u32,
    /// What daily backups cost, in tenths of the price of weekly ones; unset: what the panel's generation charges.
    pub daily_backup_factor: Option<DailyBackupFactor>,
    /// About how many instances one transaction bills; it adapts if this is not set.
    pub batch_instances: Option<u32>,
    /// How many transactions run at once; it adapts if this is not set.
    pub connections: Option<u32>,
    /// A run that charges more for an hour than the recent ones by this factor, in tenths, waits for an approval; 0: none does.
    pub spike_factor: i64,
    /// What a run may charge in any case.
    pub spike_floor: Money,
    /// When billing has not worked for this long, the panel may bill.
    pub hand_back_after: Duration,
}

impl BillingSettings {
    /// The same settings for billing at this interval: less than five quarters of it would hand billing back between two successful
    /// runs.
    #[must_use]
    pub fn at_interval(self, interval: Duration) -> Self {
        Self { hand_back_after: self.hand_back_after.max(interval * 5 / 4), ..self }
    }
}

impl Default for BillingSettings {
    fn default() -> Self {
        Self {
            max_catch_up_hours: 72,
            daily_backup_factor: None,
            batch_instances: None,
            connections: None,
            spike_factor: 30,
            spike_floor: Money(100_000),
            hand_back_after: HAND_BACK_AFTER,
        }
    }
}

/// The options of one run over the fleet.
pub struct BillingOptions<'a> {
    /// The id of the run's row.
    pub id: Uuid,
    /// The claim under which it writes.
    pub mode: Mode,
    /// Hours that ended by then are due; the database's clock decides if it is not given.
    pub as_of: Option<DateTime<Utc>>,
    /// An approval beyond the catch-up limit besides those in the audit log: a dry run tries it.
    pub approved: Option<&'a Scope>,
    /// Whether the instances with more hours than the catch-up limit are listed.
    pub lists_beyond_limit: bool,
    /// Called before each batch; returns why the run must stop, if it must.
    pub stop: &'a (dyn Fn() -> Option<StopReason> + Sync),
    /// Called after each batch with the number of instances that it read.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Receives the first prices of plans once they are written: they are in force however the run ends.
    pub first_prices: &'a (dyn Fn(&[FirstSeenPrice]) + Sync),
}

/// Whether a run commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Commit under this claim of the billing job.
    Commit(FencingToken),
    /// Do everything and roll it back. Needs no claim.
    DryRun,
}

impl Mode {
    /// The fencing token under which the run commits.
    pub(super) fn token(self) -> Option<FencingToken> {
        match self {
            Self::Commit(token) => Some(token),
            Self::DryRun => None,
        }
    }
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BillReport {
    /// The sums of what was committed (or, in a dry run, would have been).
    pub totals: Totals,
    /// Until when hours were due.
    pub as_of: DateTime<Utc>,
    /// Why it ended before the end of the fleet.
    pub stopped: Option<StopReason>,
    /// The debts that this run closed without a charge, by reason.
    pub uncharged: Vec<Uncharged>,
    /// The instances with more hours than the catch-up limit, by organization, if they are listed.
    pub beyond_limit: Vec<BeyondLimit>,
    /// Of a dry run: whether the run itself would wait for an approval.
    pub spike: Option<Spike>,
    /// The rows that are `unreadable` or were `refused`.
    pub findings: FindingsByKind,
    /// The prices that plans have for the first time: hours that had ended before pay them too.
    pub first_seen_prices: Vec<FirstSeenPrice>,
}

/// What the next run would charge, at most: the sums ignore that a wallet may not cover it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    /// The sums of all hours that are due.
    pub due: TotalsByCurrency,
    /// The most that the run may charge; a missing currency has no limit.
    pub ceilings: BTreeMap<Currency, Money>,
    /// Set if the run would wait for an approval.
    pub spike: Option<Spike>,
}

/// A price of a plan that had none before. Hours that had ended by then pay it as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstSeenPrice {
    /// The id of the plan.
    pub plan: String,
    /// The backups that the price includes.
    pub backups: Backups,
    /// The price of an hour, as decimal text.
    pub hourly_price: String,
}

impl From<SeenRate> for FirstSeenPrice {
    fn from(SeenRate { plan, backups, rate, .. }: SeenRate) -> Self {
        Self { plan, backups, hourly_price: rate.total.per_hour(6) }
    }
}

/// An instance with more hours due than the catch-up limit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct BeyondLimit {
    /// The organization that pays for it.
    pub organization: String,
    /// The id of the instance.
    pub instance: String,
    /// The name that the customer gave it.
    pub label: String,
    /// The beginning of the due hours.
    pub start: DateTime<Utc>,
    /// The due hours.
    pub hours: i64,
    /// Their price as decimal text; unset if it is unknown.
    pub amount: Option<String>,
    /// Whether an approval covers them. Otherwise the instance is held.
    pub approved: bool,
}

impl From<&BeyondLimitRow<'_>> for BeyondLimit {
    fn from(row: &BeyondLimitRow<'_>) -> Self {
        Self {
            organization: row.instance.organization.to_string(),
            instance: row.instance.id.to_string(),
            label: row.instance.label.clone(),
            start: DateTime::from_timestamp_micros(row.start).unwrap_or_default(),
            hours: row.hours,
            amount: row.amount.map(|amount| amount.to_string()),
            approved: row.approved,
        }
    }
}
