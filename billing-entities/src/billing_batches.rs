//! What a billing run did, commit by commit: its totals are the sums of these rows.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// A committed batch. Money is in ten-thousandths of its currency.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_batches")]
pub struct Model {
    /// Its key.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// Its run.
    pub run_id: Id,
    /// The fencing token it was committed under.
    pub fencing_token: i64,
    /// Up to when hours were due.
    pub as_of: Instant,
    /// How many machines were looked at.
    pub instances: i32,
    /// How many were charged.
    pub charges: i32,
    /// How many were held.
    pub held: i32,
    /// How many hours were charged.
    pub hours: i64,
    /// The charges, hours and amounts of each currency.
    pub currencies: Json,
    /// When it was written.
    pub created_at: Instant,
    /// When the newest of its rows in the wallets' ledger was created; unset if the panel's own biller made it.
    pub ledger_until: Option<Instant>,
}

impl ActiveModelBehavior for ActiveModel {}
