//! The panel's ledger of every wallet.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Money};

/// A movement of money. Never updated.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "payment_transactions")]
pub struct Model {
    /// Its key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// Whose wallet moved.
    pub organization_id: Id,
    /// Signed: a debit is negative.
    pub amount: Money,
    /// Three letters.
    pub currency: Option<String>,
    /// `wallet_debit` for what billing takes.
    pub payment_method: String,
    /// `internal` for what billing takes.
    pub payment_provider: String,
    /// Its name at the provider.
    pub provider_transaction_id: Option<String>,
    /// `completed` for what billing takes.
    pub status: String,
    /// As shown in the wallet.
    pub description: Option<String>,
    /// With `balance_before` and `balance_after`.
    pub metadata: Option<Json>,
    /// When the row was made.
    pub created_at: Option<DateTimeUtc>,
    /// When the row last changed.
    pub updated_at: Option<DateTimeUtc>,
    /// Whose wallet moved.
    #[sea_orm(belongs_to, from = "organization_id", to = "id")]
    pub organization: BelongsTo<super::organizations::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
