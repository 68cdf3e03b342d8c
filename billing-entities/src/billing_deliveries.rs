//! Deliveries of events of the prepaid policy.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// The delivery of an event to one endpoint.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_deliveries")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub event_id: Id,
    /// The name of the endpoint in jobs.toml.
    #[sea_orm(primary_key, auto_increment = false)]
    pub endpoint: String,
    pub organization_id: Option<Id>,
    /// Whether the notice or the order of the event waits for this endpoint.
    pub needed: bool,
    /// `pending`, `sent`, `dead` (given up), `superseded` (by a newer order) or `cancelled`.
    pub status: String,
    /// How often it was attempted.
    pub attempts: i32,
    /// The time of the next attempt.
    pub next_at: Instant,
    /// Until when it belongs to the process that attempts it.
    pub claimed_until: Option<Instant>,
    /// The HTTP status, SMTP code or exit code of the last attempt.
    pub last_code: Option<i32>,
    /// What the receiver stated, or why it was not reached.
    pub last_error: Option<String>,
    pub sent_at: Option<Instant>,
}

impl ActiveModelBehavior for ActiveModel {}
