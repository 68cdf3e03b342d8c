//! How the panel knows that a daemon bills: it reads the newest `heartbeat_at`.

use sea_orm::entity::prelude::*;

use crate::types::{Hours, Money};

/// A daemon as the panel sees it.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_daemon_status")]
pub struct Model {
    /// Its key.
    #[sea_orm(primary_key)]
    pub id: i32,
    /// Which daemon; unique.
    #[sea_orm(unique)]
    pub daemon_instance_id: String,
    /// `running`, `stopped` or `error`.
    pub status: String,
    /// When billing last ran.
    pub last_run_at: Option<DateTimeUtc>,
    /// Whether it worked.
    pub last_run_success: Option<bool>,
    /// How many machines that run charged.
    pub instances_billed: Option<i32>,
    /// What that run took.
    pub total_amount: Option<Money>,
    /// How many hours that run charged.
    pub total_hours: Option<Hours>,
    /// Why it did not work.
    pub error_message: Option<String>,
    /// When the daemon started.
    pub started_at: Option<DateTimeUtc>,
    /// When it last said that billing works.
    pub heartbeat_at: Option<DateTimeUtc>,
    /// Host, process, version.
    pub metadata: Option<Json>,
    /// When the row was made.
    pub created_at: Option<DateTimeUtc>,
    /// When the row last changed.
    pub updated_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {}
