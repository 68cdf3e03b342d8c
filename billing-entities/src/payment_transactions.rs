//! The wallet ledger of the panel: the changes of all wallets.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Money};

/// One change of a wallet. Rows are never updated.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "payment_transactions")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// The organization that owns the wallet.
    pub organization_id: Id,
    /// The change; a debit is negative.
    pub amount: Money,
    /// The ISO 4217 code of the currency.
    pub currency: Option<String>,
    /// `wallet_debit` for a charge.
    pub payment_method: String,
    /// `internal` for a charge.
    pub payment_provider: String,
    /// The id of the payment at the provider.
    pub provider_transaction_id: Option<String>,
    /// `completed` for a charge.
    pub status: String,
    /// The text that the panel shows next to the amount.
    pub description: Option<String>,
    /// `balance_before` and `balance_after`, among others.
    pub metadata: Option<Json>,
    pub created_at: Option<DateTimeUtc>,
    pub updated_at: Option<DateTimeUtc>,
    #[sea_orm(belongs_to, from = "organization_id", to = "id")]
    pub organization: BelongsTo<super::organizations::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
