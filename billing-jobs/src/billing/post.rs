//! The only module that writes money: one transaction, every row counted.

use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, Value};
use serde::Serialize;
use uuid::Uuid;

use super::{decide::Posting, statements::Statements};
use crate::{
    db::{begin, statement},
    period::Micros,
    testing,
};

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
pub(super) struct Stamp {
    pub(super) run: Uuid,
    pub(super) fence: i64,
    pub(super) as_of: Micros,
}

/// Writes `posting` inside `txn`. The wallets come last: what others wait for is locked and changed for the shortest time.
pub(super) async fn post(
    txn: &DatabaseTransaction,
    sql: &Statements,
    stamp: Stamp,
    posting: &Posting,
) -> Result<(), PostError> {
    let write = Writer { txn };
    let batch = write.batch(&sql.insert_batch, stamp, posting).await?;
    write.rows(&sql.insert_openings, "billing_wallets", &posting.openings, None).await?;
    let taken = posting.charges.iter().filter(|charge| charge.ledger.is_some()).count();
    write.some_rows(&sql.insert_ledger, "payment_transactions", &posting.charges, taken, None).await?;
    write.rows(&sql.insert_charges, "billing_charges", &posting.charges, Some(batch)).await?;
    if !testing::mutated("cycles-apart") {
        write.cycles(sql, posting).await?;
    }
    write.rows(&sql.insert_meters, "billing_meters", &posting.new_meters, None).await?;
    write.rows(&sql.update_meters, "billing_meters", &posting.meters, None).await?;
    write.rows(&sql.update_anchors, "vps_instances", &posting.anchors, None).await?;
    if !posting.repairs.is_empty() {
        // How many cycles are missing is not known beforehand.
        write.run(&sql.repair_cycles, json(&posting.repairs), None).await?;
    }
    write.rows(&sql.upsert_holds, "billing_holds", &posting.holds, Some(stamp.as_of)).await?;
    write.rows(&sql.close_holds, "billing_holds", &posting.releases, Some(stamp.as_of)).await?;
    if testing::mutated("debit-apart") {
        return Ok(());
    }
    write.wallets(sql, posting).await
}

/// Writes what [`post`] left out for a test: as a biller does that has never heard of transactions.
pub(super) async fn post_apart(
    db: &DatabaseConnection,
    sql: &Statements,
    posting: &Posting,
) -> Result<(), PostError> {
    for (mutation, cycles) in [("cycles-apart", true), ("debit-apart", false)] {
        if testing::mutated(mutation) {
            testing::linger().await;
            let txn = begin(db).await?;
            let write = Writer { txn: &txn };
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

struct Writer<'a> {
    txn: &'a DatabaseTransaction,
}

impl Writer<'_> {
    async fn batch(&self, sql: &str, stamp: Stamp, posting: &Posting) -> Result<i64, PostError> {
        let totals = posting.totals;
        let values: [Value; 8] = [
            stamp.run.to_string().into(),
            stamp.fence.into(),
            stamp.as_of.into(),
            count(totals.charged),
            count(totals.charges),
            count(totals.held),
            count(totals.hours),
            totals.amount.0.into(),
        ];
        testing::before_statement();
        let row = self.txn.query_one_raw(statement(self.txn, sql, values)).await?;
        let row = row.ok_or(PostError::Count { table: "billing_batches", expected: 1, found: 0 })?;
        Ok(row.try_get("", "id")?)
    }

    async fn cycles(&self, sql: &Statements, posting: &Posting) -> Result<(), PostError> {
        let present = posting.charges.iter().filter(|charge| charge.cycle.is_some()).count();
        self.some_rows(&sql.insert_cycles, "vps_billing_cycles", &posting.charges, present, None).await
    }

    async fn wallets(&self, sql: &Statements, posting: &Posting) -> Result<(), PostError> {
        self.rows(&sql.update_wallets, "wallets", &posting.wallets, None).await
    }

    /// One row of `table` for each of `rows`.
    async fn rows<T: Serialize>(
        &self,
        sql: &str,
        table: &'static str,
        rows: &[T],
        second: Option<i64>,
    ) -> Result<(), PostError> {
        self.some_rows(sql, table, rows, rows.len(), second).await
    }

    /// A row of `table` for `expected` of `rows`.
    async fn some_rows<T: Serialize>(
        &self,
        sql: &str,
        table: &'static str,
        rows: &[T],
        expected: usize,
        second: Option<i64>,
    ) -> Result<(), PostError> {
        if expected == 0 {
            return Ok(());
        }
        let found = self.run(sql, json(rows), second).await?;
        if found == expected as u64 || testing::mutated("no-count-check") {
            Ok(())
        } else {
            Err(PostError::Count { table, expected, found })
        }
    }

    async fn run(&self, sql: &str, rows: String, second: Option<i64>) -> Result<u64, DbErr> {
        let values = [Some(rows.into()), second.map(Value::from)].into_iter().flatten();
        testing::before_statement();
        Ok(self.txn.execute_raw(statement(self.txn, sql, values)).await?.rows_affected())
    }
}

fn count(number: u64) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}

fn json<T: Serialize>(rows: &[T]) -> String {
    serde_json::to_string(rows).expect("rows of text and integers are always JSON")
}
