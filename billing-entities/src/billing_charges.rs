//! The charge ledger: append-only, and kept when the panel deletes an instance.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// One charge. `amount` is in ten-thousandths of the currency, `rate` and `carry` are in 1/730 of a millionth of it.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_charges")]
pub struct Model {
    /// The first instant of the billing period.
    #[sea_orm(primary_key, auto_increment = false)]
    pub period_start: Instant,
    #[sea_orm(primary_key, auto_increment = false)]
    pub instance_id: Id,
    /// The organization that paid.
    pub organization_id: Id,
    pub batch_id: i64,
    /// The length of the billing period.
    pub hours: i32,
    /// The price of an hour.
    pub rate: i64,
    /// The amount that was debited.
    pub amount: i64,
    /// The remainder that is carried to the next charge.
    pub carry: i64,
    /// The row in `payment_transactions`; `None` if nothing was debited.
    pub payment_transaction_id: Option<Id>,
    /// The ISO 4217 code of the currency, or `XXX` if the organization has no wallet.
    pub currency: String,
    /// Whether the panel's own biller charged, behind the panel guard.
    pub by_panel: bool,
}

impl ActiveModelBehavior for ActiveModel {}
