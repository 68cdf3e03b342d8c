//! The plans of the panel: monthly prices of instances.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Money};

/// One plan. The columns about backups and `type_class` do not exist in every generation of the panel: they are not read.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "vps_plans")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    pub name: String,
    /// The id of the plan at the provider.
    pub provider_plan_id: String,
    pub provider_id: Option<Id>,
    /// The provider's price of a month.
    pub base_price: Option<Money>,
    /// The amount that the panel adds for a month.
    pub markup_price: Option<Money>,
    /// The processors, the memory and the disk.
    pub specifications: Json,
    /// Whether customers can order the plan.
    pub active: bool,
    pub created_at: Option<DateTimeUtc>,
    pub updated_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {}
