//! Rows of the tables that tests compare, with the same types on every kind of database.

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// A row of the wallet's ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerRow {
    /// In ten-thousandths; a debit is negative.
    pub amount: i64,
    /// The currency of the amount.
    pub currency: String,
    /// `wallet_debit` for a charge of ours.
    pub method: String,
    /// `internal` for a charge of ours.
    pub provider: String,
    /// `completed` for a charge of ours.
    pub status: String,
    /// The text for the customer.
    pub description: String,
    /// `balance_before`, `balance_after` and the like.
    pub metadata: serde_json::Value,
}

/// A row of the panel's billing cycles.
#[derive(Clone, Debug, PartialEq)]
pub struct CycleRow {
    /// The first instant of the period.
    pub start: DateTime<Utc>,
    /// The first instant after the period.
    pub end: DateTime<Utc>,
    /// In ten-thousandths an hour.
    pub hourly_rate: i64,
    /// The sum of the period in ten-thousandths.
    pub total: i64,
    /// `billed` or `failed`.
    pub status: String,
    /// The ledger's row that paid for it.
    pub payment_transaction_id: Option<Uuid>,
    /// What the panel's invoices show.
    pub metadata: serde_json::Value,
}

/// A row of our ledger of hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChargeRow {
    /// The first instant of the charged hours.
    pub start: DateTime<Utc>,
    /// The number of hours.
    pub hours: i64,
    /// The charged amount in ten-thousandths.
    pub amount: i64,
}

/// Why an instance that is due was not charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldRow {
    /// The reason as in the column, such as `no_price`.
    pub reason: String,
    /// The detail for the operator.
    pub detail: String,
    /// Hours that are due and not charged, if that is known.
    pub hours: Option<i64>,
    /// Their price in ten-thousandths, if it is known.
    pub amount: Option<i64>,
    /// Whether the hold is open.
    pub open: bool,
}
