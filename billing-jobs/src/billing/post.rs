//! The only module that writes money: one transaction, every row counted.

use chrono::DateTime;
use sea_orm::{DbBackend, Statement, Value};
use tracing::Instrument as _;
use uuid::Uuid;

use super::{
    BatchTransaction,
    id::{self, Id},
    model::{ChargeRow, Posting},
    sql::Statements,
    sql::rows,
    transaction::{Connection as _, PostError},
};
use crate::{hold::Reason, period::Micros, restore_detection::Batch, spans};

/// Under which run, claim and time a posting is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchHeader {
    pub(super) run: Uuid,
    pub(super) fencing_token: i64,
    pub(super) as_of: Micros,
}

/// Writes `posting` inside `txn` and returns the batch. The wallets come last: what others wait for is locked and changed for the shortest time.
pub(super) async fn post(
    txn: &BatchTransaction,
    sql: &Statements,
    header: BatchHeader,
    posting: &Posting<'_>,
) -> Result<Batch, PostError> {
    let on = txn.backend();
    let (batch, ledger_until) = insert_batch(txn, sql, header, posting).await?;
    let openings = ids(on, &sql.insert_openings, &[], &posting.openings);
    write(txn, "billing_wallet_openings", posting.openings.len(), openings).await?;
    write_charges(txn, sql, &posting.charges, batch.id, ledger_until).await?;
    for (sql, fields, meters) in [
        (&sql.insert_meters, rows::NEW_METERS, &posting.new_meters),
        (&sql.update_meters, rows::METERS, &posting.meters),
    ] {
        let statements = rows::meters(on, fields, meters).statements(sql);
        write(txn, "billing_meters", meters.len(), statements).await?;
    }
    let anchors = rows::anchors(on, &posting.anchors).statements(&sql.update_anchors);
    write(txn, "vps_instances", posting.anchors.len(), anchors).await?;
    for repair in rows::repairs(on, &posting.repairs).statements(&sql.repair_cycles) {
        // The number of missing cycles is not known in advance.
        txn.execute(repair).instrument(spans::write(on, "vps_billing_cycles")).await?;
    }
    write_holds(txn, sql, header.as_of, posting).await?;
    let wallets = rows::wallets(on, &posting.wallets).statements(&sql.update_wallets);
    write(txn, "wallets", posting.wallets.len(), wallets).await?;
    Ok(batch)
}

/// Inserts the row of the batch. Returns the batch, and the `created_at` of the last of its debits.
async fn insert_batch(
    txn: &BatchTransaction,
    sql: &Statements,
    header: BatchHeader,
    posting: &Posting<'_>,
) -> Result<(Batch, Micros), PostError> {
    const TABLE: &str = "billing_batches";
    let totals = &posting.totals;
    let currencies = serde_json::to_string(&totals.currencies).expect("numbers are always JSON");
    let values: [Value; 9] = [
        header.run.to_string().into(),
        header.fencing_token.into(),
        header.as_of.into(),
        count(totals.charged),
        count(totals.charges),
        count(totals.held),
        count(totals.hours),
        currencies.into(),
        count(rows::debits(&posting.charges) as u64),
    ];
    let statement = Statement::from_sql_and_values(txn.backend(), &sql.insert_batch, values);
    let row = txn.query_one(statement).instrument(spans::write(txn.backend(), TABLE)).await?;
    let row = row.ok_or(PostError::Count { table: TABLE, expected: 1, found: 0 })?;
    let at = DateTime::from_timestamp_micros(row.try_get("", "created_at")?).unwrap_or_default();
    let batch = Batch { id: row.try_get("", "id")?, run: header.run.to_string(), at };
    Ok((batch, row.try_get("", "ledger_until")?))
}

/// Writes charges into the wallets' ledger, into the ledger of hours, and into the panel's cycles.
async fn write_charges(
    txn: &BatchTransaction,
    sql: &Statements,
    charges: &[ChargeRow<'_>],
    batch: i64,
    ledger_until: Micros,
) -> Result<(), PostError> {
    let on = txn.backend();
    let ledger = rows::ledger(on, charges, ledger_until).statements(&sql.insert_ledger);
    write(txn, "payment_transactions", rows::debits(charges), ledger).await?;
    let hours = rows::charges(on, batch, charges).statements(&sql.insert_charges);
    write(txn, "billing_charges", charges.len(), hours).await?;
    let present = charges.iter().filter(|charge| charge.cycle.is_some()).count();
    let cycles = rows::cycles(on, charges).statements(&sql.insert_cycles);
    write(txn, "vps_billing_cycles", present, cycles).await
}

/// Opens, refreshes and closes holds.
async fn write_holds(
    txn: &BatchTransaction,
    sql: &Statements,
    as_of: Micros,
    posting: &Posting<'_>,
) -> Result<(), PostError> {
    const TABLE: &str = "billing_holds";
    let on = txn.backend();
    let opened = rows::holds(on, as_of, &posting.holds).statements(&sql.upsert_holds);
    write(txn, TABLE, posting.holds.len(), opened).await?;
    let closed = ids(on, &sql.close_holds, &[as_of.into()], &posting.releases);
    write(txn, TABLE, posting.releases.len(), closed).await?;
    for (reason, instances) in
        [(Reason::InstanceDeleted, &posting.deleted), (Reason::InstanceTransferred, &posting.uncollected)]
    {
        let first = [as_of.into(), reason.as_str().into()];
        write(txn, TABLE, instances.len(), ids(on, &sql.close_uncharged, &first, instances)).await?;
    }
    Ok(())
}

/// Executes `statements`, if there are any, which write `expected` rows of `table`.
async fn write(
    txn: &BatchTransaction,
    table: &'static str,
    expected: usize,
    statements: Vec<Statement>,
) -> Result<(), PostError> {
    if statements.is_empty() {
        return Ok(());
    }
    txn.write(table, expected, statements).instrument(spans::write(txn.backend(), table)).await
}

/// A statement for all of `ids`, which are its last parameter, after `first`; none if there are no ids.
fn ids(on: DbBackend, sql: &str, first: &[Value], ids: &[Id]) -> Vec<Statement> {
    if ids.is_empty() {
        return Vec::new();
    }
    let values = first.iter().cloned().chain([id::list(ids)]);
    vec![Statement::from_sql_and_values(on, sql, values)]
}

fn count(number: u64) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}
