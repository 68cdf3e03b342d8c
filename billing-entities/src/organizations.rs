//! The customers of the panel, who own wallets and instances.

use sea_orm::entity::prelude::*;

use crate::types::Id;

/// One row per organization.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "organizations")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    pub name: String,
    /// The unique name in addresses of the panel.
    #[sea_orm(unique)]
    pub slug: String,
    pub owner_id: Id,
    /// Settings that only the panel reads.
    pub settings: Option<Json>,
    pub website: Option<String>,
    pub address: Option<String>,
    pub tax_id: Option<String>,
    pub created_at: Option<DateTimeUtc>,
    pub updated_at: Option<DateTimeUtc>,
    #[sea_orm(belongs_to, from = "owner_id", to = "id")]
    pub owner: BelongsTo<super::users::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
