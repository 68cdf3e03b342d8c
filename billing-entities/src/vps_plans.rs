//! What machines cost, by the month.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Money};

/// A plan. The columns about backups and `type_class` are not in every generation of the panel, so they are
/// not here.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "vps_plans")]
pub struct Model {
    /// Its key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// As shown.
    pub name: String,
    /// Its name at the provider.
    pub provider_plan_id: String,
    /// Whose plan it is.
    pub provider_id: Option<Id>,
    /// What the provider takes in a month.
    pub base_price: Option<Money>,
    /// What the panel adds in a month.
    pub markup_price: Option<Money>,
    /// Processors, memory, disk.
    pub specifications: Json,
    /// Whether it is still sold.
    pub active: bool,
    /// When the row was made.
    pub created_at: Option<DateTimeUtc>,
    /// When the row last changed.
    pub updated_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {}
