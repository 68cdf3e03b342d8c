//! Events of the prepaid policy.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// What is sent to the endpoints that receive its type. A row is never changed.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_events")]
pub struct Model {
    /// The id of each attempt to deliver it, in the order of time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    #[sea_orm(column_name = "type")]
    pub kind: String,
    /// The customer; `None` if the event is for operators.
    pub organization_id: Option<Id>,
    /// The number of an order to suspend or to resume, which is `order` in JSON.
    pub order_number: Option<i64>,
    /// How many endpoints receive it: the number of its deliveries.
    pub endpoints: i32,
    /// The JSON text that is signed and sent.
    pub body: String,
    pub created_at: Instant,
}

impl ActiveModelBehavior for ActiveModel {}
