//! The state of each wallet before the first charge. The audit compares with it.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// One wallet. Amounts are in ten-thousandths of the currency.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_wallet_openings")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub wallet_id: Id,
    pub organization_id: Id,
    /// The balance of the wallet.
    pub opening_balance: i64,
    /// The sum of the organization's rows in `payment_transactions`.
    pub opening_ledger: i64,
    pub opened_at: Instant,
}

impl ActiveModelBehavior for ActiveModel {}
