//! The prepaid money of the customers.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Money};

/// One wallet. The schema permits an organization to have several.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "wallets")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    pub organization_id: Id,
    pub balance: Option<Money>,
    /// The ISO 4217 code of the currency.
    pub currency: Option<String>,
    pub created_at: Option<DateTimeUtc>,
    pub updated_at: Option<DateTimeUtc>,
    #[sea_orm(belongs_to, from = "organization_id", to = "id")]
    pub organization: BelongsTo<super::organizations::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
