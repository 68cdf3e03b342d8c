//! The start of every transaction that moves money: the number under which it may, and its limits.

use billing_scheduler::FencingToken;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};

use crate::{BILLING_JOB, db::statement};

/// Whether `fence` is still the newest number of the billing job. Until `txn` ends, no newer one can be in force.
pub(crate) async fn is_newest(
    txn: &DatabaseTransaction,
    sql: &str,
    fence: FencingToken,
) -> Result<bool, DbErr> {
    let row = txn.query_one_raw(statement(txn, sql, [BILLING_JOB.into(), fence.0.into()])).await?;
    Ok(row.is_some())
}
