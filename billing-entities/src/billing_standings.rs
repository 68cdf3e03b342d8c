//! Standings: what the prepaid policy has decided of each organization.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// The standing of one organization. An organization without a row was never low.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_standings")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub organization_id: Id,
    /// `ok`, `low`, `exhausted`, `suspended`, or `unknown` while a fact is missing.
    pub state: String,
    /// The time at which this state began.
    pub since: Instant,
    /// Whether each run of the job checks the organization.
    pub watched: bool,
    /// The number of the passage from `ok` down and back.
    pub episode: i64,
    /// The most urgent notice of the episode: hours of runway, 0 if the wallet is exhausted, -1 for the final notice; `None` before the
    /// first one.
    pub level: Option<i32>,
    /// The sum of the rates of the instances, in 1/730 of a millionth per hour; `None` if it is unknown.
    pub burn: Option<i64>,
    /// What is due and unpaid; `None` if it is unknown.
    pub owed: Option<i64>,
    /// The hours that the wallet covers, negative if it owes; `None` if nothing is spent or the hours are unknown.
    pub runway_hours: Option<i64>,
    /// The time since which the wallet has not covered the next hour.
    pub exhausted_at: Option<Instant>,
    /// The number of the newest order, which is `order` in JSON; 0 if there was none.
    pub order_number: i64,
    /// What that order wants: `running` or `suspended`.
    pub desired: String,
    /// The number of the newest order that every needed endpoint has accepted.
    pub acked_order: Option<i64>,
    pub acked_at: Option<Instant>,
    /// The time at which the row was written last. A check that changes nothing does not write it.
    pub evaluated_at: Instant,
}

impl ActiveModelBehavior for ActiveModel {}
