//! Holds: instances that are due but cannot be charged.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// One hold. An instance has at most one that is open. Amounts are in ten-thousandths of the currency.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_holds")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub instance_id: Id,
    /// The organization that should have paid.
    pub organization_id: Id,
    /// The label of the instance in the panel.
    pub label: String,
    /// The kind of reason, such as `unknown_plan`.
    pub reason: String,
    /// The reason as a sentence.
    pub detail: Option<String>,
    pub hours_due: Option<i64>,
    /// The price of the hours that are due; `None` if it is not known.
    pub amount_due: Option<i64>,
    /// The currency of `amount_due`; `None` if no wallet has one.
    pub currency: Option<String>,
    /// The time of the first run that could not charge the instance.
    pub opened_at: Instant,
    /// The time of the last run that could not charge the instance.
    pub seen_at: Instant,
    /// The time at which the instance was charged or no longer due; `None` while the hold is open.
    pub closed_at: Option<Instant>,
    /// The reason for closing the hold without a charge: `instance_deleted`, `instance_transferred` or `written_off`.
    pub closed_reason: Option<String>,
    /// The reason under which an operator accepted the hold. The acceptance is valid only while the hold has this reason.
    pub accepted_for: Option<String>,
    /// The end of the acceptance; `None` if it has no limit.
    pub accepted_until: Option<Instant>,
    /// The operator who accepted the hold.
    pub accepted_by: Option<String>,
    pub accepted_note: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {}
