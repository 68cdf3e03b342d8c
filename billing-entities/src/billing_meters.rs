//! The meters of instances: the state that is carried from charge to charge.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// One meter. `rate`, `backup_rate` and `carry` are in 1/730 of a millionth of the currency.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_meters")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub instance_id: Id,
    /// The organization that pays.
    pub organization_id: Id,
    /// The watermark: the time up to which the instance is charged.
    pub billed_through: Instant,
    /// The remainder of the last charge.
    pub carry: i64,
    /// The price of the hours after `billed_through`; `None` until a run has priced the instance.
    pub rate: Option<i64>,
    /// The part of `rate` that pays for backups.
    pub backup_rate: Option<i64>,
    /// The prices that runs saw while hours were unpaid: microseconds since 1970, rate and backup rate of each.
    pub rate_changes: Option<Json>,
    /// The last time at which a run saw the instance.
    pub seen_at: Instant,
    /// The creation time of the meter.
    pub opened_at: Instant,
    /// The last time at which the panel's own biller charged the instance.
    pub panel_debited_at: Option<Instant>,
    /// The time at which a run recorded that the panel deleted the instance.
    pub deleted_at: Option<Instant>,
}

impl ActiveModelBehavior for ActiveModel {}
