//! The billing cycles of the panel, from which it makes invoices.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Money};

/// One billed period of an instance. The panel deletes it with the instance.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "vps_billing_cycles")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    pub vps_instance_id: Id,
    /// The organization that paid.
    pub organization_id: Id,
    pub billing_period_start: DateTimeUtc,
    /// The end of the period, exclusive.
    pub billing_period_end: DateTimeUtc,
    /// The price of an hour.
    pub hourly_rate: Money,
    /// The amount that was debited.
    pub total_amount: Money,
    /// `pending`, `billed`, `failed` or `refunded`; an invoice shows `billed`.
    pub status: Option<String>,
    pub payment_transaction_id: Option<Id>,
    /// The line on the invoice, among others.
    pub metadata: Option<Json>,
    pub created_at: Option<DateTimeUtc>,
    pub updated_at: Option<DateTimeUtc>,
    #[sea_orm(belongs_to, from = "vps_instance_id", to = "id")]
    pub vps_instance: BelongsTo<super::vps_instances::Entity>,
    #[sea_orm(belongs_to, from = "payment_transaction_id", to = "id")]
    pub payment_transaction: BelongsTo<Option<super::payment_transactions::Entity>>,
}

impl ActiveModelBehavior for ActiveModel {}
