//! The committed batches of billing runs. The totals of a run are the sums of its rows.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// One committed batch. Amounts are in ten-thousandths of their currency.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_batches")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub run_id: Id,
    /// The fencing token under which the batch was committed.
    pub fencing_token: i64,
    /// The time of the run: hours that ended by then were due.
    pub as_of: Instant,
    /// The number of instances that were read.
    pub instances: i32,
    /// The number of instances that were charged.
    pub charges: i32,
    /// The number of instances that are due but could not be charged.
    pub held: i32,
    /// The number of charged hours.
    pub hours: i64,
    /// The charges, hours and amount of each currency, as in `{"USD": {"charges": 3, "hours": 9, "amount": 900}}`.
    pub currencies: Json,
    pub created_at: Instant,
    /// The creation time of the batch's newest row in `payment_transactions`; `None` if the panel's own biller charged.
    pub ledger_until: Option<Instant>,
}

impl ActiveModelBehavior for ActiveModel {}
