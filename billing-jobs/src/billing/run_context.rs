//! What a run works with: connections, statements, settings, and what it read before its first batch.

use std::time::Duration;

use billing_scheduler::FencingToken;
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, QueryResult, Value};
use tracing::{Instrument as _, debug};

use super::{
    BillingError, BillingOptions, BillingSettings,
    approvals::Approvals,
    decide::BillingTerms,
    fencing::{self, Permission, permission},
    sql::Statements,
};
use crate::{
    BILLING_JOB, panel::Panel, period::Micros, price::PriceList, restore_detection::RestoreDetection, spans,
};
use billing_store::{
    ErrorClass, StatementLimit, Transaction, begin, begin_read, classify, statement, within,
};

/// The most attempts at a statement or a batch.
pub(super) const MAX_ATTEMPTS: u32 = 5;
/// The wait after the first conflict; it doubles.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(20);

/// What a run works with.
pub(super) struct RunContext<'a> {
    /// The connections that read outside of batches.
    pub(super) db: &'a DatabaseConnection,
    /// The connections that write; see [`exclusive_writer`](billing_store::exclusive_writer).
    pub(super) writer: DatabaseConnection,
    pub(super) panel: Panel,
    pub(super) sql: &'a Statements,
    pub(super) settings: BillingSettings,
    pub(super) restores: &'a RestoreDetection,
    /// Whether a batch is rolled back without the panel guard.
    pub(super) needs_guard: bool,
    pub(super) options: &'a BillingOptions<'a>,
    /// Hours that ended by then are due.
    pub(super) as_of: Micros,
    pub(super) prices: PriceList,
    pub(super) approvals: Approvals,
}

impl RunContext<'_> {
    /// The terms of a batch, which the database `refused` before or not.
    pub(super) fn terms<'b>(&'b self, refused: Option<&'b str>) -> BillingTerms<'b> {
        BillingTerms {
            as_of: self.as_of,
            prices: &self.prices,
            unit: self.panel.unit,
            max_catch_up_hours: i64::from(self.settings.max_catch_up_hours),
            approvals: &self.approvals,
            refused,
        }
    }

    /// Begins a transaction outside of the batches that writes under `token`; none if `token` is not the newest one, or billing is
    /// halted.
    pub(super) async fn begin_fenced(&self, token: FencingToken) -> Result<Option<Transaction>, DbErr> {
        let txn = begin(&self.writer).await?;
        if let Some(settings) = &self.sql.settings {
            txn.query_one_raw(statement(&txn, settings, [token.0.into(), BILLING_JOB.into()])).await?;
        }
        let check = fencing::check(self.panel.backend, &self.sql.check_fence, token, self.restores);
        if permission(txn.query_one_raw(check).await?.as_ref())? != Permission::Granted {
            txn.rollback().await?;
            return Ok(None);
        }
        Ok(Some(txn))
    }

    /// Returns the first row of a query, read in a separate transaction.
    pub(super) async fn read_one<const N: usize>(
        &self,
        doing: &'static str,
        sql: &str,
        values: [Value; N],
    ) -> Result<Option<QueryResult>, BillingError> {
        let query = statement(&self.writer, sql, values);
        let read = || async {
            let txn = begin_read(&self.writer, StatementLimit::Fleet).await?;
            if let Some(settings) = &self.sql.plan_settings {
                txn.query_one_raw(statement(&txn, settings, [])).await?;
            }
            let row = txn.query_one_raw(query.clone()).await?;
            txn.commit().await?;
            Ok(row)
        };
        self.retry(doing, read).await
    }

    /// Calls `work` until it succeeds, at most [`MAX_ATTEMPTS`] times. The first attempt has the time of a batch: what takes longer may
    /// be a large fleet or a connection without an answer, and the second attempt, on another connection, shows which.
    pub(super) async fn retry<T, F: Future<Output = Result<T, DbErr>>>(
        &self,
        doing: &'static str,
        work: impl Fn() -> F,
    ) -> Result<T, BillingError> {
        let mut wait = FIRST_WAIT;
        let mut attempt = 1;
        loop {
            let limit = if attempt == 1 { StatementLimit::Batch } else { StatementLimit::Fleet };
            let work = within(self.panel.backend, limit, work());
            match work.instrument(spans::step(self.panel.backend, doing)).await {
                Ok(result) => return Ok(result),
                Err(error)
                    if attempt < MAX_ATTEMPTS
                        && !matches!(classify(&error), ErrorClass::Broken | ErrorClass::Storage) =>
                {
                    debug!(attempt, "cannot {doing}: {error}; retrying");
                }
                Err(source) => return Err(BillingError::Database { doing, source }),
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
            attempt += 1;
        }
    }

    /// Returns why a transaction outside of the batches may not write.
    pub(super) async fn refusal(&self) -> BillingError {
        self.restores.check().await.map_or_else(BillingError::from, |()| BillingError::Fenced)
    }

    /// Closes the connection that writes, on SQLite a separate one.
    pub(super) async fn close(&self) {
        if self.panel.backend == DbBackend::Sqlite {
            // If this fails, dropping the connection closes it.
            let _ = self.writer.clone().close().await;
        }
    }
}
