//! Whose work may be committed: the check of the fencing token and of the noted batch inside a transaction of a billing run.

use billing_scheduler::FencingToken;
use sea_orm::{DbBackend, DbErr, QueryResult, Statement, Value};

use crate::{BILLING_JOB, restore_detection::RestoreDetection};

/// Whether a transaction may commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    Granted,
    /// Another daemon has claimed the job since.
    Fenced,
    /// Billing is halted, or the batch that this process has noted is missing.
    Restored,
}

/// Returns the statement that has a row if `token` is the newest one of the billing job. Until the transaction ends, no newer one can
/// take effect, and no process can halt billing.
pub(super) fn check(
    backend: DbBackend,
    sql: &str,
    token: FencingToken,
    restores: &RestoreDetection,
) -> Statement {
    let batch = restores.note().map(|note| note.batch);
    let values: [Value; 5] = [
        BILLING_JOB.into(),
        token.0.into(),
        batch.as_ref().map(|batch| batch.id).into(),
        batch.as_ref().map(|batch| batch.run.clone()).into(),
        batch.map(|batch| batch.at.timestamp_micros()).into(),
    ];
    Statement::from_sql_and_values(backend, sql, values)
}

/// Reads the row of [`check`].
pub(super) fn permission(row: Option<&QueryResult>) -> Result<Permission, DbErr> {
    let Some(row) = row else { return Ok(Permission::Fenced) };
    let is_restored = row.try_get("", "halted")? || !row.try_get("", "intact")?;
    Ok(if is_restored { Permission::Restored } else { Permission::Granted })
}
