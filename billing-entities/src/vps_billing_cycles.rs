//! What the panel's invoices are built from.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Money};

/// A billed period of a machine. It disappears with the machine.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "vps_billing_cycles")]
pub struct Model {
    /// Its key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// The machine.
    pub vps_instance_id: Id,
    /// Who paid.
    pub organization_id: Id,
    /// The first instant of the period.
    pub billing_period_start: DateTimeUtc,
    /// The first instant after it.
    pub billing_period_end: DateTimeUtc,
    /// The price of an hour.
    pub hourly_rate: Money,
    /// What was taken.
    pub total_amount: Money,
    /// `pending`, `billed`, `failed` or `refunded`; an invoice shows `billed`.
    pub status: Option<String>,
    /// The movement that paid it.
    pub payment_transaction_id: Option<Id>,
    /// What the invoice tells of it.
    pub metadata: Option<Json>,
    /// When the row was made.
    pub created_at: Option<DateTimeUtc>,
    /// When the row last changed.
    pub updated_at: Option<DateTimeUtc>,
    /// The machine.
    #[sea_orm(belongs_to, from = "vps_instance_id", to = "id")]
    pub vps_instance: BelongsTo<super::vps_instances::Entity>,
    /// The movement that paid it.
    #[sea_orm(belongs_to, from = "payment_transaction_id", to = "id")]
    pub payment_transaction: BelongsTo<Option<super::payment_transactions::Entity>>,
}

impl ActiveModelBehavior for ActiveModel {}
