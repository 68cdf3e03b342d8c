//! The customers of the panel: who owns wallets and machines.

use sea_orm::entity::prelude::*;

use crate::types::Id;

/// A customer.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "organizations")]
pub struct Model {
    /// Its key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// As shown.
    pub name: String,
    /// As in addresses of the panel; unique.
    #[sea_orm(unique)]
    pub slug: String,
    /// The user who owns it.
    pub owner_id: Id,
    /// The panel's own settings.
    pub settings: Option<Json>,
    /// For invoices.
    pub website: Option<String>,
    /// For invoices.
    pub address: Option<String>,
    /// For invoices.
    pub tax_id: Option<String>,
    /// When the row was made.
    pub created_at: Option<DateTimeUtc>,
    /// When the row last changed.
    pub updated_at: Option<DateTimeUtc>,
    /// The user who owns it.
    #[sea_orm(belongs_to, from = "owner_id", to = "id")]
    pub owner: BelongsTo<super::users::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
