//! What `charges explain` prints as JSON, and the console shows. Amounts are decimal texts.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

/// What is known about one instance at one time.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ChargeExplanation {
    pub(crate) instance: Uuid,
    /// The label; unset for a deleted instance that was never held.
    pub(crate) label: Option<String>,
    /// Whether the panel has deleted the instance.
    pub(crate) deleted: bool,
    /// The end of the last charged hour.
    pub(crate) billed_through: Option<DateTime<Utc>>,
    /// The current plan.
    pub(crate) plan: Option<PlanView>,
    /// The prices of that plan that runs saw, the newest first.
    pub(crate) prices: Vec<PriceView>,
    pub(crate) charge: Option<ChargeView>,
    /// The hold that was open at that time, or is open now.
    pub(crate) hold: Option<HoldView>,
    /// The values of the panel's rows that cannot be read.
    pub(crate) unreadable: Vec<String>,
}

/// The current state of a plan.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PlanView {
    pub(crate) id: String,
    pub(crate) name: String,
    /// The base and markup price per month, without backups; unset if the plan has no price.
    pub(crate) monthly: Option<String>,
}

/// A version of the price of an hour.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PriceView {
    /// The first time at which a run saw it. Hours that end later have it, until the next version.
    pub(crate) seen_at: DateTime<Utc>,
    /// The backups that the price includes: `none`, `weekly` or `daily`.
    pub(crate) backups: String,
    /// The price with six decimals.
    pub(crate) hourly_price: String,
    /// The exact price, in 1/730 of a millionth.
    pub(crate) rate: i64,
    /// Whether the charge has this price.
    pub(crate) applied: bool,
}

/// One charge, with the rows that were written together with it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ChargeView {
    /// The organization that paid.
    pub(crate) organization: Uuid,
    /// The first instant of the charged hours.
    pub(crate) period_start: DateTime<Utc>,
    /// The first instant after the charged hours.
    pub(crate) period_end: DateTime<Utc>,
    pub(crate) hours: i32,
    /// The price of an hour, with six decimals.
    pub(crate) hourly_price: String,
    /// The exact price of an hour, in 1/730 of a millionth.
    pub(crate) rate: i64,
    /// The remainder of the previous charge, in 1/730 of a millionth.
    pub(crate) carry_before: i64,
    /// The remainder of this charge.
    pub(crate) carry_after: i64,
    /// The charged amount.
    pub(crate) amount: String,
    /// The currency of the amount; `XXX` if there is none.
    pub(crate) currency: String,
    /// Whether `carry_before + rate * hours` is exactly the amount and the remainder.
    pub(crate) adds_up: bool,
    /// Whether the panel's built-in biller made the charge.
    pub(crate) by_panel: bool,
    /// The row of the wallet ledger; unset if the amount is zero or the row is deleted.
    pub(crate) ledger: Option<LedgerView>,
    /// The panel's billing cycle, which is deleted with the instance.
    pub(crate) cycle: Option<CycleView>,
    /// The batch in which the charge was committed.
    pub(crate) batch: Option<BatchView>,
}

/// A row of the wallet ledger.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LedgerView {
    pub(crate) id: Uuid,
    pub(crate) description: Option<String>,
    /// The balance of the wallet before the debit, according to the ledger.
    pub(crate) balance_before: Option<String>,
    pub(crate) balance_after: Option<String>,
}

/// A row of the panel's billing cycles.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CycleView {
    pub(crate) id: Uuid,
    /// The cycle's status in the panel.
    pub(crate) status: &'static str,
    /// The details that the invoice shows.
    pub(crate) metadata: serde_json::Value,
}

/// A committed batch with its run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BatchView {
    pub(crate) id: i64,
    /// When the batch was committed.
    pub(crate) created_at: DateTime<Utc>,
    /// Hours that ended by then were due.
    pub(crate) as_of: DateTime<Utc>,
    pub(crate) fencing_token: i64,
    /// The run's id.
    pub(crate) run: Uuid,
    /// The scheduled time of the run, while the history has it.
    pub(crate) scheduled_at: Option<DateTime<Utc>>,
    pub(crate) daemon_id: Option<String>,
    /// What started the run.
    pub(crate) cause: Option<String>,
}

/// The hours of an instance that are due and not charged.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HoldView {
    /// The organization that owes the hours.
    pub(crate) organization: Uuid,
    pub(crate) reason: String,
    pub(crate) detail: Option<String>,
    /// The number of due hours, if it is known.
    pub(crate) hours_due: Option<i64>,
    /// The due amount, if the hours have a price.
    pub(crate) amount_due: Option<String>,
    /// The currency of the amount, if the organization has one wallet with a currency.
    pub(crate) currency: Option<String>,
    pub(crate) opened_at: DateTime<Utc>,
    /// When a run last found the hold.
    pub(crate) seen_at: DateTime<Utc>,
    pub(crate) closed_at: Option<DateTime<Utc>>,
    /// Why the hold was closed without a charge.
    pub(crate) closed_reason: Option<String>,
}
