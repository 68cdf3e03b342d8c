//! Whose work may be committed: the number under which a transaction of ours begins, and the trigger that holds the panel's
//! own biller to the same rule.

mod trigger;

use billing_scheduler::FencingToken;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};

pub use self::trigger::{FenceError, FenceStatus, Installed, install, remove, status};
pub(crate) use self::trigger::{is_effective_sql, is_up};

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
