//! What `charges explain` prints as JSON. Amounts are decimal texts.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

/// What is known about one instance at one time.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChargeExplanation {
    pub(super) instance: Uuid,
    /// The label; unset for a deleted instance that was never held.
    pub(super) label: Option<String>,
    /// Whether the panel has deleted the instance.
    pub(super) deleted: bool,
    /// The end of the last charged hour.
    pub(super) billed_through: Option<DateTime<Utc>>,
    /// The current plan.
    pub(super) plan: Option<PlanView>,
    pub(super) charge: Option<ChargeView>,
    /// The hold that was open at that time, or is open now.
    pub(super) hold: Option<HoldView>,
    /// The values of the panel's rows that cannot be read.
    pub(super) unreadable: Vec<String>,
}

/// The current state of a plan.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PlanView {
    pub(super) name: String,
    /// The base and markup price per month, without backups; unset if the plan has no price.
    pub(super) monthly: Option<String>,
}

/// One charge, with the rows that were written together with it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChargeView {
    /// The organization that paid.
    pub(super) organization: Uuid,
    /// The first instant of the charged hours.
    pub(super) period_start: DateTime<Utc>,
    /// The first instant after the charged hours.
    pub(super) period_end: DateTime<Utc>,
    pub(super) hours: i32,
    /// The price of an hour, with six decimals.
    pub(super) hourly_price: String,
    /// The exact price of an hour, in 1/730 of a millionth.
    pub(super) rate: i64,
    /// The remainder of the previous charge, in 1/730 of a millionth.
    pub(super) carry_before: i64,
    /// The remainder of this charge.
    pub(super) carry_after: i64,
    /// The charged amount.
    pub(super) amount: String,
    /// The currency of the amount; `XXX` if there is none.
    pub(super) currency: String,
    /// Whether `carry_before + rate * hours` is exactly the amount and the remainder.
    pub(super) adds_up: bool,
    /// Whether the panel's built-in biller made the charge.
    pub(super) by_panel: bool,
    /// The row of the wallet ledger; unset if the amount is zero or the row is deleted.
    pub(super) ledger: Option<LedgerView>,
    /// The panel's billing cycle, which is deleted with the instance.
    pub(super) cycle: Option<CycleView>,
    /// The batch in which the charge was committed.
    pub(super) batch: Option<BatchView>,
}

/// A row of the wallet ledger.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LedgerView {
    pub(super) id: Uuid,
    pub(super) description: Option<String>,
    /// The balance of the wallet before the debit, according to the ledger.
    pub(super) balance_before: Option<String>,
    pub(super) balance_after: Option<String>,
}

/// A row of the panel's billing cycles.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CycleView {
    pub(super) id: Uuid,
    /// The cycle's status in the panel.
    pub(super) status: &'static str,
    /// The details that the invoice shows.
    pub(super) metadata: serde_json::Value,
}

/// A committed batch with its run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BatchView {
    pub(super) id: i64,
    /// When the batch was committed.
    pub(super) created_at: DateTime<Utc>,
    /// Hours that ended by then were due.
    pub(super) as_of: DateTime<Utc>,
    pub(super) fencing_token: i64,
    /// The run's id.
    pub(super) run: Uuid,
    /// The scheduled time of the run, while the history has it.
    pub(super) scheduled_at: Option<DateTime<Utc>>,
    pub(super) daemon_id: Option<String>,
    /// What started the run.
    pub(super) cause: Option<String>,
}

/// The hours of an instance that are due and not charged.
#[derive(Clone, Debug, Serialize)]
pub(super) struct HoldView {
    /// The organization that owes the hours.
    pub(super) organization: Uuid,
    pub(super) reason: String,
    pub(super) detail: Option<String>,
    /// The number of due hours, if it is known.
    pub(super) hours_due: Option<i64>,
    /// The due amount, if the hours have a price.
    pub(super) amount_due: Option<String>,
    /// The currency of the amount, if the organization has one wallet with a currency.
    pub(super) currency: Option<String>,
    pub(super) opened_at: DateTime<Utc>,
    /// When a run last found the hold.
    pub(super) seen_at: DateTime<Utc>,
    pub(super) closed_at: Option<DateTime<Utc>>,
    /// Why the hold was closed without a charge.
    pub(super) closed_reason: Option<String>,
}
