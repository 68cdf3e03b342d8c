//! One audit: every check in one snapshot, then the unique key of the charges and the chain of the audit log.

use std::time::Instant;

use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr};
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
use billing_store::{StatementLimit, Transaction, audit_log, begin_read, columns, statement};

/// The statistics of PostgreSQL may be older than the rows: a nested loop that the planner chooses for a few rows never ends for a
/// fleet. To compile the checks takes longer than they save.
const PLANNER_SETTINGS: &str = "SET LOCAL enable_nestloop = off; SET LOCAL jit = off";
/// No more violations of one invariant than these are listed; a further line counts the rest.
const LISTED: i64 = 100;

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
    let txn = begin_read(db, StatementLimit::Report).await?;
    let sqlite = db.get_database_backend() == DbBackend::Sqlite;
    if !sqlite {
        txn.execute_unprepared(PLANNER_SETTINGS).await?;
    }
    for check in checks(Dialect { sqlite }) {
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

async fn perform(check: &Check, txn: &Transaction, audit: &mut Audit) -> Result<(), DbErr> {
    let query = |sql: &str| {
        let parameters = sql.contains("$1").then(|| BILLING_JOB.into());
        statement(txn, sql, parameters)
    };
    let began = Instant::now();
    let counted = txn.query_one_raw(query(check.count)).await?;
    let counted: i64 = counted.map_or(Ok(0), |row| row.try_get("", "n"))?;
    audit.checked += counted.unsigned_abs();
    let broken = txn.query_all_raw(query(&listed(&check.broken))).await?;
    let took_ms = began.elapsed().as_millis();
    debug!(check = check.name, took_ms, "checked `{}` on {counted} rows in {took_ms} ms", check.name);
    for row in &broken {
        audit.violations.push(Violation::new(check.name, columns::lossy(row, "detail"), check.resolve));
    }
    let found: i64 = broken.first().map_or(Ok(0), |row| row.try_get("", "found"))?;
    if found > LISTED {
        let rest = format!("and {} more", found - LISTED);
        audit.violations.push(Violation::new(check.name, rest, check.resolve));
    }
    Ok(())
}

/// The first rows that break an invariant, each with their number: not all of them fit into the memory.
fn listed(broken: &str) -> String {
    format!("SELECT detail, count(*) OVER () AS found FROM (\n{broken}\n) AS violations LIMIT {LISTED}")
}

/// The queries of the audit, each with the name of its check, as tests of their plans read them.
#[cfg(feature = "testing")]
#[must_use]
pub fn queries(backend: DbBackend) -> Vec<(&'static str, String)> {
    let checks = checks(Dialect { sqlite: backend == DbBackend::Sqlite });
    checks.iter().map(|check| (check.name, listed(&check.broken))).collect()
}
