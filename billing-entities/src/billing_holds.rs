//! Why a machine that is due was not charged.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// A hold. At most one of a machine is open. Money is in ten-thousandths.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_holds")]
pub struct Model {
    /// Its key.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// The machine.
    pub instance_id: Id,
    /// Who should have paid.
    pub organization_id: Id,
    /// The machine's label.
    pub label: String,
    /// The kind of reason.
    pub reason: String,
    /// The reason in words.
    pub detail: Option<String>,
    /// How many hours are due.
    pub hours_due: Option<i64>,
    /// What they cost, where it is known.
    pub amount_due: Option<i64>,
    /// The currency of that; unset if no wallet names one.
    pub currency: Option<String>,
    /// Since when.
    pub opened_at: Instant,
    /// When it last held.
    pub seen_at: Instant,
    /// When the instance was charged or no longer due; unset while it is held.
    pub closed_at: Option<Instant>,
    /// Why it was closed without a charge: `instance_deleted`, `instance_transferred` or `written_off`.
    pub closed_reason: Option<String>,
    /// The reason under which an operator accepted the hold; the acceptance counts only while the hold has this reason.
    pub accepted_for: Option<String>,
    /// Until when it is accepted; without limit if unset.
    pub accepted_until: Option<Instant>,
    /// The operator who accepted it.
    pub accepted_by: Option<String>,
    /// The operator's words.
    pub accepted_note: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {}
