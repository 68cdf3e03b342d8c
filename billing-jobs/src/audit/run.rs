//! One audit: every check in one snapshot, then the unique key of the charges and the chain of the audit log.

use std::time::Instant;

use sea_orm::{ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr};
use tracing::debug;

use super::{
    Audit, Violation,
    checks::{Check, TAMPERED, checks},
    dialect::Dialect,
    unique_key::unique_key,
};
use crate::{
    BILLING_JOB,
    uncharged::{Closed, uncharged},
};
use billing_store::{audit_log, begin_read, columns, statement};

/// No more violations of one invariant than these are listed; a further line counts the rest.
const LISTED: usize = 100;

/// Checks every invariant. Changes nothing.
#[expect(clippy::missing_panics_doc, reason = "the audit has no reason to stop")]
pub async fn audit(db: &DatabaseConnection) -> Result<Audit, DbErr> {
    let audit = audit_until(db, || false).await?;
    Ok(audit.expect("the audit has no reason to stop"))
}

/// The same, unless `stop`, which is called before each step, returns true: half of an audit has no result.
pub async fn audit_until(
    db: &DatabaseConnection,
    stop: impl Fn() -> bool + Send + Sync,
) -> Result<Option<Audit>, DbErr> {
    let mut audit = Audit::default();
    let txn = begin_read(db).await?;
    for check in checks(Dialect { sqlite: db.get_database_backend() == DbBackend::Sqlite }) {
        if stop() {
            txn.rollback().await?;
            return Ok(None);
        }
        perform(&check, &txn, &mut audit).await?;
    }
    audit.uncharged = uncharged(&txn, Closed::Since(0)).await?;
    txn.rollback().await?;
    if stop() {
        return Ok(None);
    }
    audit.checked += 1;
    audit.violations.extend(unique_key(db).await?);
    let Some(chain) = audit_log::verify_until(db, &stop).await? else { return Ok(None) };
    audit.checked += chain.rows;
    audit.violations.extend(chain.broken.map(|id| {
        let detail = format!("row {id} of scheduler_audit_log was changed, or the row before it was removed");
        Violation::new("record_chain", detail, TAMPERED)
    }));
    Ok(Some(audit))
}

async fn perform(check: &Check, txn: &DatabaseTransaction, audit: &mut Audit) -> Result<(), DbErr> {
    let query = |sql: &str| {
        let parameters = sql.contains("$1").then(|| BILLING_JOB.into());
        statement(txn, sql, parameters)
    };
    let began = Instant::now();
    let counted = txn.query_one_raw(query(check.count)).await?;
    let counted: i64 = counted.map_or(Ok(0), |row| row.try_get("", "n"))?;
    audit.checked += counted.unsigned_abs();
    let broken = txn.query_all_raw(query(&check.broken)).await?;
    let took_ms = began.elapsed().as_millis();
    debug!(check = check.name, took_ms, "checked `{}` on {counted} rows in {took_ms} ms", check.name);
    for row in broken.iter().take(LISTED) {
        audit.violations.push(Violation::new(check.name, columns::lossy(row, "detail"), check.resolve));
    }
    if broken.len() > LISTED {
        let rest = format!("and {} more", broken.len() - LISTED);
        audit.violations.push(Violation::new(check.name, rest, check.resolve));
    }
    Ok(())
}
