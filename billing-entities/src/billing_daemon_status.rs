//! The panel's view of the daemons. While the newest `heartbeat_at` is recent, the panel does not bill.

use sea_orm::entity::prelude::*;

use crate::types::{Hours, Money};

/// One row per daemon.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_daemon_status")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i32,
    /// The unique id of the daemon process.
    #[sea_orm(unique)]
    pub daemon_instance_id: String,
    /// `running`, `stopped` or `error`.
    pub status: String,
    /// The time of the last billing run. The following fields describe this run.
    pub last_run_at: Option<DateTimeUtc>,
    pub last_run_success: Option<bool>,
    /// The number of instances that were charged.
    pub instances_billed: Option<i32>,
    /// The sum of all charges.
    pub total_amount: Option<Money>,
    /// The number of charged hours.
    pub total_hours: Option<Hours>,
    pub error_message: Option<String>,
    pub started_at: Option<DateTimeUtc>,
    /// The last time at which billing worked.
    pub heartbeat_at: Option<DateTimeUtc>,
    /// The host, the process and the version, among others.
    pub metadata: Option<Json>,
    pub created_at: Option<DateTimeUtc>,
    pub updated_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {}
