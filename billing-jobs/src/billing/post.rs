//! The only module that writes money: one transaction, every row counted.

use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, Value};
use tracing::Instrument as _;
use uuid::Uuid;

use super::{
    id::Id,
    model::Posting,
    sql::Statements,
    sql::rows::{self, Rows},
};
use crate::{fault_injection, hold::Reason, period::Micros, spans};
use billing_store::{begin, statement};

/// Why a posting must be rolled back.
#[derive(Debug)]
pub(super) enum PostError {
    Database(DbErr),
    /// A statement changed another number of rows than it should have: what was read is no longer so, or a policy hides
    /// rows from us.
    Count {
        table: &'static str,
        expected: usize,
        found: u64,
    },
}

impl From<DbErr> for PostError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

/// Under which run, claim and time a posting is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchHeader {
    pub(super) run: Uuid,
    pub(super) fencing_token: i64,
    pub(super) as_of: Micros,
}

/// Writes `posting` inside `txn`. The wallets come last: what others wait for is locked and changed for the shortest time.
pub(super) async fn post(
    txn: &DatabaseTransaction,
    sql: &Statements,
    stamp: BatchHeader,
    posting: &Posting<'_>,
) -> Result<(), PostError> {
    let write = BatchWriter::of(txn);
    let on = write.backend;
    let debits = rows::debits(&posting.charges);
    let (batch, ledger_until) = write.batch(&sql.insert_batch, stamp, posting, debits).await?;
    write.ids(&sql.insert_openings, "billing_wallet_openings", &posting.openings, &[]).await?;
    let ledger = || rows::ledger(on, &posting.charges, ledger_until);
    let expected = usize::try_from(debits).unwrap_or(usize::MAX);
    write.rows(&sql.insert_ledger, "payment_transactions", expected, ledger).await?;
    write
        .rows(&sql.insert_charges, "billing_charges", posting.charges.len(), || {
            rows::charges(on, batch, &posting.charges)
        })
        .await?;
    if !fault_injection::mutated("cycles-apart") {
        write.cycles(sql, posting).await?;
    }
    let meters = [
        (&sql.insert_meters, rows::NEW_METERS, &posting.new_meters),
        (&sql.update_meters, rows::METERS, &posting.meters),
    ];
    for (sql, fields, meters) in meters {
        write.rows(sql, "billing_meters", meters.len(), || rows::meters(on, fields, meters)).await?;
    }
    let anchors = &posting.anchors;
    write.rows(&sql.update_anchors, "vps_instances", anchors.len(), || rows::anchors(on, anchors)).await?;
    if !posting.repairs.is_empty() {
        // How many cycles are missing is not known beforehand.
        let repairs = rows::repairs(on, &posting.repairs).run(txn, &sql.repair_cycles);
        repairs.instrument(spans::write(on, "vps_billing_cycles")).await?;
    }
    let (holds, as_of) = (&posting.holds, stamp.as_of);
    write.rows(&sql.upsert_holds, "billing_holds", holds.len(), || rows::holds(on, as_of, holds)).await?;
    write.ids(&sql.close_holds, "billing_holds", &posting.releases, &[as_of.into()]).await?;
    for (reason, ids) in
        [(Reason::InstanceDeleted, &posting.deleted), (Reason::InstanceTransferred, &posting.uncollected)]
    {
        let values = [as_of.into(), reason.as_str().into()];
        write.ids(&sql.close_uncharged, "billing_holds", ids, &values).await?;
    }
    if fault_injection::mutated("debit-apart") {
        return Ok(());
    }
    write.wallets(sql, posting).await
}

/// Writes what [`post`] left out for a test: as a biller does that has never heard of transactions.
pub(super) async fn post_rows_separately(
    db: &DatabaseConnection,
    sql: &Statements,
    posting: &Posting<'_>,
) -> Result<(), PostError> {
    for (mutation, cycles) in [("cycles-apart", true), ("debit-apart", false)] {
        if fault_injection::mutated(mutation) {
            fault_injection::linger().await;
            let txn = begin(db).await?;
            let write = BatchWriter::of(&txn);
            if cycles {
                write.cycles(sql, posting).await?;
            } else {
                write.wallets(sql, posting).await?;
            }
            txn.commit().await?;
        }
    }
    Ok(())
}

struct BatchWriter<'a> {
    txn: &'a DatabaseTransaction,
    backend: DbBackend,
}

impl<'a> BatchWriter<'a> {
    fn of(txn: &'a DatabaseTransaction) -> Self {
        Self { txn, backend: txn.get_database_backend() }
    }

    /// The batch's row: its id, and the `created_at` of the last of its `debits`.
    async fn batch(
        &self,
        sql: &str,
        stamp: BatchHeader,
        posting: &Posting<'_>,
        debits: i64,
    ) -> Result<(i64, Micros), PostError> {
        let totals = &posting.totals;
        let currencies = serde_json::to_string(&totals.currencies).expect("numbers are always JSON");
        let values: [Value; 9] = [
            stamp.run.to_string().into(),
            stamp.fencing_token.into(),
            stamp.as_of.into(),
            count(totals.charged),
            count(totals.charges),
            count(totals.held),
            count(totals.hours),
            currencies.into(),
            debits.into(),
        ];
        fault_injection::before_statement();
        let (table, statement) = ("billing_batches", statement(self.txn, sql, values));
        let row = self.txn.query_one_raw(statement).instrument(spans::write(self.backend, table)).await?;
        let row = row.ok_or(PostError::Count { table, expected: 1, found: 0 })?;
        Ok((row.try_get("", "id")?, row.try_get("", "ledger_until")?))
    }

    async fn cycles(&self, sql: &Statements, posting: &Posting<'_>) -> Result<(), PostError> {
        let present = posting.charges.iter().filter(|charge| charge.cycle.is_some()).count();
        let rows = || rows::cycles(self.backend, &posting.charges);
        self.rows(&sql.insert_cycles, "vps_billing_cycles", present, rows).await
    }

    async fn wallets(&self, sql: &Statements, posting: &Posting<'_>) -> Result<(), PostError> {
        let rows = || rows::wallets(self.backend, &posting.wallets);
        self.rows(&sql.update_wallets, "wallets", posting.wallets.len(), rows).await
    }

    /// One row of `table` for each of `expected` rows.
    async fn rows(
        &self,
        sql: &str,
        table: &'static str,
        expected: usize,
        rows: impl FnOnce() -> Rows,
    ) -> Result<(), PostError> {
        if expected == 0 {
            return Ok(());
        }
        let found = rows().run(self.txn, sql).instrument(spans::write(self.backend, table)).await?;
        counted(table, expected, found)
    }

    /// One row of `table` for each of `ids`, which are the last parameter after `first`.
    async fn ids(
        &self,
        sql: &str,
        table: &'static str,
        ids: &[Id],
        first: &[Value],
    ) -> Result<(), PostError> {
        if ids.is_empty() {
            return Ok(());
        }
        let list = serde_json::to_string(ids).expect("text is always JSON");
        let values = first.iter().cloned().chain([list.into()]);
        fault_injection::before_statement();
        let written = self.txn.execute_raw(statement(self.txn, sql, values));
        let written = written.instrument(spans::write(self.backend, table)).await?;
        counted(table, ids.len(), written.rows_affected())
    }
}

fn counted(table: &'static str, expected: usize, found: u64) -> Result<(), PostError> {
    if found == expected as u64 || fault_injection::mutated("no-count-check") {
        Ok(())
    } else {
        Err(PostError::Count { table, expected, found })
    }
}

fn count(number: u64) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}
