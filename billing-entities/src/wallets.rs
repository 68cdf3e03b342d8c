//! Where the customers' money is.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Money};

/// The prepaid money of an organization. Nothing keeps an organization from having two.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "wallets")]
pub struct Model {
    /// Its key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// Whose it is.
    pub organization_id: Id,
    /// What is left.
    pub balance: Option<Money>,
    /// Three letters.
    pub currency: Option<String>,
    /// When the row was made.
    pub created_at: Option<DateTimeUtc>,
    /// When the row last changed.
    pub updated_at: Option<DateTimeUtc>,
    /// Whose it is.
    #[sea_orm(belongs_to, from = "organization_id", to = "id")]
    pub organization: BelongsTo<super::organizations::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
