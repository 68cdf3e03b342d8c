//! The prices of plans that billing runs saw, one row for each change.

use sea_orm::entity::prelude::*;

use crate::types::Instant;

/// One price. The rates are in 1/730 of a millionth of the currency.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_seen_rates")]
pub struct Model {
    /// The `id` of the plan.
    #[sea_orm(primary_key, auto_increment = false)]
    pub plan_id: String,
    /// The backups that the price includes: `none`, `weekly` or `daily`.
    #[sea_orm(primary_key, auto_increment = false)]
    pub backups: String,
    /// The first time at which a run saw the price.
    #[sea_orm(primary_key, auto_increment = false)]
    pub seen_at: Instant,
    /// The price of an hour.
    pub rate: i64,
    /// The part of `rate` that pays for backups.
    pub backup_rate: i64,
}

impl ActiveModelBehavior for ActiveModel {}
