//! The prices that runs have seen, plan by plan: an instance that no run has priced yet pays for each hour what was seen when the hour
//! ended. A price is written once, before the first hour is charged at it.

use billing_store::Transaction;
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbErr, QueryResult};
use tracing::info;

use super::{BillingError, FirstSeenPrice, Mode, run_context::RunContext, sql::Statements, sql::rows};
use crate::{
    money::{HourlyRate, Rate},
    price::{Backups, NewRates, SeenRate},
};
use billing_store::{
    columns::{self, Unreadable, text, value},
    query_fleet, statement,
};

/// All seen prices, of each plan the oldest first, and why other rows cannot be read.
pub(super) async fn read(
    db: &DatabaseConnection,
    sql: &Statements,
) -> Result<(Vec<SeenRate>, Vec<Unreadable>), DbErr> {
    let rows = query_fleet(db, statement(db, &sql.seen_rates, [])).await?;
    let (mut seen, mut unreadable) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in &rows {
        match seen_rate(row) {
            Ok(rate) => seen.push(rate),
            Err(problem) => unreadable.push(problem),
        }
    }
    Ok((seen, unreadable))
}

fn seen_rate(row: &QueryResult) -> Result<SeenRate, Unreadable> {
    let rate = |place, column| value(row, place, column).map(Rate);
    Ok(SeenRate {
        plan: text(row, 0, "billing_seen_rates.plan_id")?,
        backups: Backups::of(Some(&columns::lossy(row, 1))),
        seen_at: value(row, 2, "billing_seen_rates.seen_at")?,
        rate: HourlyRate {
            total: rate(3, "billing_seen_rates.rate")?,
            backup: rate(4, "billing_seen_rates.backup_rate")?,
        },
    })
}

/// Writes the prices that the run sees for the first time, unless it is a dry run; returns the first prices of plans.
pub(super) async fn record(context: &RunContext<'_>) -> Result<Vec<FirstSeenPrice>, BillingError> {
    let new = context.prices.unseen(context.as_of);
    if let Mode::Commit(token) = context.options.mode
        && new != NewRates::default()
    {
        let write = || async {
            let Some(txn) = context.begin_fenced(token).await? else { return Ok(false) };
            insert(&txn, context.sql, &new).await?;
            txn.commit().await?;
            Ok(true)
        };
        if !context.retry("record prices", write).await? {
            return Err(context.refusal().await);
        }
    }
    // Free backups do not change the price without backups.
    let priced = new.first.into_iter().filter(|seen| seen.backups == Backups::None || seen.rate.backup.0 > 0);
    let first: Vec<FirstSeenPrice> = priced.map(FirstSeenPrice::from).collect();
    if !first.is_empty() && matches!(context.options.mode, Mode::Commit(_)) {
        info!(
            prices = first.len(),
            "saw {} prices for the first time; hours before pay them too",
            first.len()
        );
    }
    Ok(first)
}

/// Writes new prices; those that an earlier attempt has written stay.
pub(super) async fn insert(txn: &Transaction, sql: &Statements, new: &NewRates) -> Result<(), DbErr> {
    let all: Vec<&SeenRate> = new.first.iter().chain(&new.changed).collect();
    let rows = rows::seen_rates(txn.get_database_backend(), &all);
    for statement in rows.statements(&sql.insert_seen_rates) {
        txn.execute_raw(statement).await?;
    }
    Ok(())
}
