//! Notices of the prepaid policy.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// A notice of an episode, sent or only recorded.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_notices")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub organization_id: Id,
    #[sea_orm(primary_key, auto_increment = false)]
    pub episode: i64,
    /// The hours of runway, 0 if the wallet is exhausted, -1 for the final notice.
    #[sea_orm(primary_key, auto_increment = false)]
    pub level: i32,
    /// The event that was sent; `None` if it was not sent, as in mode `watch`.
    pub event_id: Option<Id>,
    /// Whether it was not sent because a more urgent notice was due at the same time.
    pub passed: bool,
    pub created_at: Instant,
    /// The time at which every needed endpoint had accepted it.
    pub delivered_at: Option<Instant>,
}

impl ActiveModelBehavior for ActiveModel {}
