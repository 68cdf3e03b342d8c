//! The prices that runs saw, plan by plan.

use sea_orm::entity::prelude::*;

use crate::types::Instant;

/// A price that a run saw for the first time. The rates are in 1/730 of a millionth.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_seen_rates")]
pub struct Model {
    /// The plan's own id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub plan_id: String,
    /// With which backups: `none`, `weekly` or `daily`.
    #[sea_orm(primary_key, auto_increment = false)]
    pub backups: String,
    /// When it was first seen.
    #[sea_orm(primary_key, auto_increment = false)]
    pub seen_at: Instant,
    /// The price of an hour.
    pub rate: i64,
    /// The part of `rate` that pays for backups.
    pub backup_rate: i64,
}

impl ActiveModelBehavior for ActiveModel {}
