//! Where the audit measures from.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// A wallet as it was before our first charge. Money is in ten-thousandths.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_wallet_openings")]
pub struct Model {
    /// The wallet.
    #[sea_orm(primary_key, auto_increment = false)]
    pub wallet_id: Id,
    /// Whose it is.
    pub organization_id: Id,
    /// What it held.
    pub opening_balance: i64,
    /// What the panel's ledger summed up to.
    pub opening_ledger: i64,
    /// When that was.
    pub opened_at: Instant,
}

impl ActiveModelBehavior for ActiveModel {}
