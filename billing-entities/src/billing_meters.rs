//! What is carried from charge to charge of one machine.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// The meter of a machine. `rate` and `carry` are in 1/730 of a millionth.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_meters")]
pub struct Model {
    /// The machine.
    #[sea_orm(primary_key, auto_increment = false)]
    pub instance_id: Id,
    /// Who pays for it.
    pub organization_id: Id,
    /// Up to when it is charged.
    pub billed_through: Instant,
    /// What the last charge left over.
    pub carry: i64,
    /// The price of the hours that follow `billed_through`; unset where nobody has priced the machine yet.
    pub rate: Option<i64>,
    /// The part of `rate` that pays for backups.
    pub backup_rate: Option<i64>,
    /// Prices seen while hours were unpaid: microseconds since 1970, the rate and the part for backups.
    pub rate_changes: Option<Json>,
    /// When the machine was last there.
    pub seen_at: Instant,
    /// When the meter was created.
    pub opened_at: Instant,
    /// When the panel's own biller last moved the meter.
    pub panel_debited_at: Option<Instant>,
    /// When a run recorded that the panel deleted the instance.
    pub deleted_at: Option<Instant>,
}

impl ActiveModelBehavior for ActiveModel {}
