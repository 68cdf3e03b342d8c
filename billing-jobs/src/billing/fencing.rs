//! Whose work may be committed: the check of the fencing token inside a transaction of a billing run.

use billing_scheduler::FencingToken;
use sea_orm::{DbBackend, Statement};

use crate::BILLING_JOB;

/// Returns the statement that has a row if `token` is the newest one of the billing job. Until the transaction ends, no newer one can
/// take effect.
pub(super) fn check(backend: DbBackend, sql: &str, token: FencingToken) -> Statement {
    Statement::from_sql_and_values(backend, sql, [BILLING_JOB.into(), token.0.into()])
}
