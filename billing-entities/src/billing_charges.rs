//! The ledger of hours, which outlives the machines.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// A charge. Append-only. Money is in ten-thousandths; `rate` and `carry` are in 1/730 of a millionth.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_charges")]
pub struct Model {
    /// The first instant of the period.
    #[sea_orm(primary_key, auto_increment = false)]
    pub period_start: Instant,
    /// The machine.
    #[sea_orm(primary_key, auto_increment = false)]
    pub instance_id: Id,
    /// Who paid.
    pub organization_id: Id,
    /// The batch that made it.
    pub batch_id: i64,
    /// The length of the period.
    pub hours: i32,
    /// The price of an hour.
    pub rate: i64,
    /// What was taken.
    pub amount: i64,
    /// What is carried to the next charge.
    pub carry: i64,
    /// The panel's row for it; unset when nothing was taken.
    pub payment_transaction_id: Option<Id>,
    /// The currency of the amount.
    pub currency: String,
    /// Whether the panel's own biller made it, behind the panel guard.
    pub by_panel: bool,
}

impl ActiveModelBehavior for ActiveModel {}
