//! Whose work may be committed: the check of the fencing token inside a transaction of a billing run.

use billing_scheduler::FencingToken;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};

use crate::BILLING_JOB;
use billing_store::statement;

/// Returns whether `token` is still the newest one of the billing job. Until `txn` ends, no newer one can take effect.
pub(crate) async fn is_newest(
    txn: &DatabaseTransaction,
    sql: &str,
    token: FencingToken,
) -> Result<bool, DbErr> {
    let row = txn.query_one_raw(statement(txn, sql, [BILLING_JOB.into(), token.0.into()])).await?;
    Ok(row.is_some())
}
