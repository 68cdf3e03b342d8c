//! Instances that the panel deleted while they had hours due: each of them is recorded once, at the end of a run.
//!
//! The panel deletes the row of an instance and reports nothing, so the hours since its last charge cannot be charged any more. At
//! the end of a run the meter of every instance that exists was moved within the last hour or has an open hold, so one comparison
//! of the meters with the instances finds those that are gone.

use billing_store::{StatementLimit, Transaction};
use chrono::{DateTime, SecondsFormat};
use sea_orm::{ConnectionTrait as _, DbErr, QueryResult, Value};
use tracing::debug;

use super::{
    BillingError, Mode,
    findings::{Findings, LISTED},
    id::{self, Id},
    model::{HoldRow, Instance, Meter},
    read,
    run_context::RunContext,
    sql::rows,
};
use crate::{
    currency::Currency,
    hold::Reason,
    money::{Money, WalletUnit},
    period::{Micros, whole_hours},
    uncharged::Debt,
};
use billing_store::{
    begin_read,
    columns::{self, Unreadable, value},
    statement,
};

/// How many are recorded in one transaction.
const PAGE: usize = 1_000;

/// The meter of an instance that is gone.
struct Gone {
    instance: Id,
    organization: Id,
    meter: Meter,
    /// The currency of its organization's wallet; unset if there is none.
    currency: Option<Currency>,
    /// Whether an open hold covers the hours up to when it was last seen.
    held: bool,
}

/// The hours of a deleted instance that no hold and no charge covers.
struct Lost {
    hours: i64,
    amount: Option<Money>,
}

/// Records the deleted instances; in a dry run only counts them. Those whose meter cannot be read are added to `unreadable`.
pub(super) async fn record_deleted(
    context: &RunContext<'_>,
    unreadable: &mut Findings,
) -> Result<Debt, BillingError> {
    let (found, problems) = context.retry("find deleted instances", || find(context)).await?;
    unreadable.extend(problems, LISTED);
    let mut debt = Debt::default();
    for page in found.chunks(PAGE) {
        if matches!(context.options.mode, Mode::Commit(_))
            && !context.retry("record deleted instances", || record(context, page)).await?
        {
            return Err(context.refusal().await);
        }
        for gone in page {
            let Lost { hours, amount } = gone.lost(context.as_of, context.panel.unit);
            if hours > 0 {
                debt.add(hours, amount, gone.currency.unwrap_or(Currency::NONE));
            }
        }
    }
    Ok(debt)
}

impl Gone {
    fn of(row: &QueryResult) -> Result<Self, Unreadable> {
        let meter = read::meter(row, 3)?;
        Ok(Self {
            instance: read::id(row, 0, "billing_meters.instance_id")?,
            organization: read::id(row, 1, "billing_meters.organization_id")?,
            held: value(row, 2, "billing_holds")?,
            currency: columns::lossy(row, 10).parse().ok(),
            meter: meter
                .ok_or_else(|| Unreadable::new("billing_meters.billed_through", "is not an instant"))?,
        })
    }

    /// An upper bound: when the panel deleted the instance is not known.
    fn lost(&self, as_of: Micros, unit: WalletUnit) -> Lost {
        let Meter { billed_through, carry, rates, seen_at, .. } = &self.meter;
        let owed = if self.held { whole_hours(*billed_through, *seen_at) } else { 0 };
        let hours = whole_hours(*billed_through, as_of) - owed;
        let amount_of = |hours| Some(rates.as_ref()?.cost(*billed_through, hours, *carry, unit)?.0);
        // From the watermark on, because a rest that is smaller than the wallet's unit is carried from hour to hour.
        let amount = amount_of(owed + hours).zip(amount_of(owed)).map(|(all, owed)| Money(all - owed));
        Lost { hours, amount }
    }

    fn as_instance(&self) -> Instance {
        Instance { gone: true, ..Instance::unread(self.instance.clone(), self.organization.clone()) }
    }

    fn detail(&self, as_of: Micros) -> String {
        let shown = |micros| {
            let at = DateTime::from_timestamp_micros(micros).unwrap_or_default();
            at.to_rfc3339_opts(SecondsFormat::Secs, true)
        };
        format!(
            "the panel deleted it between {} and {}, charged up to {}",
            shown(self.meter.seen_at),
            shown(as_of),
            shown(self.meter.billed_through)
        )
    }
}

async fn find(context: &RunContext<'_>) -> Result<(Vec<Gone>, Findings), DbErr> {
    let began = std::time::Instant::now();
    let txn = begin_read(&context.writer, StatementLimit::Fleet).await?;
    let values: [Value; 1] = [context.as_of.into()];
    let rows = txn.query_all_raw(statement(&txn, &context.sql.deleted_meters, values)).await?;
    txn.commit().await?;
    let took_ms = began.elapsed().as_millis();
    debug!(took_ms, "found {} deleted instances in {took_ms} ms", rows.len());
    let (mut found, mut unreadable) = (Vec::with_capacity(rows.len()), Findings::default());
    for row in &rows {
        match Gone::of(row) {
            Ok(gone) => found.push(gone),
            Err(problem) => unreadable.add(format!("the meter of a deleted instance: {problem}"), LISTED),
        }
    }
    Ok((found, unreadable))
}

/// Writes one page. Returns false if the fencing token of the run is no longer the newest one.
async fn record(context: &RunContext<'_>, page: &[Gone]) -> Result<bool, DbErr> {
    let Mode::Commit(token) = context.options.mode else { return Ok(true) };
    let sql = context.sql;
    let Some(txn) = context.begin_fenced(token).await? else { return Ok(false) };
    let ids = id::list(page.iter().map(|gone| &gone.instance));
    let marked = statement(&txn, &sql.mark_deleted, [context.as_of.into(), ids]);
    let marked = txn.execute_raw(marked).await?.rows_affected();
    if marked != page.len() as u64 {
        // An earlier attempt was committed, and its answer was lost.
        txn.rollback().await?;
        return Ok(true);
    }
    insert_holds(context, &txn, page).await?;
    txn.commit().await?;
    Ok(true)
}

async fn insert_holds(context: &RunContext<'_>, txn: &Transaction, page: &[Gone]) -> Result<(), DbErr> {
    let lost = page.iter().map(|gone| (gone, gone.lost(context.as_of, context.panel.unit)));
    let lost: Vec<_> = lost
        .filter(|(_, lost)| lost.hours > 0)
        .map(|(gone, lost)| (gone, gone.as_instance(), lost))
        .collect();
    let holds: Vec<_> = lost
        .iter()
        .map(|(gone, instance, lost)| HoldRow {
            instance,
            reason: Reason::InstanceDeleted.as_str(),
            detail: gone.detail(context.as_of),
            hours: Some(lost.hours),
            amount: lost.amount,
            currency: gone.currency,
        })
        .collect();
    let rows = rows::holds(context.panel.backend, context.as_of, &holds);
    let mut found = 0;
    for statement in rows.statements(&context.sql.insert_deleted_holds) {
        found += txn.execute_raw(statement).await?.rows_affected();
    }
    if found == holds.len() as u64 { Ok(()) } else { Err(DbErr::RecordNotInserted) }
}
