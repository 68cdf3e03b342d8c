//! Instances that the panel deleted while they had hours to be charged: each of them is recorded once, after the pass over the fleet.
//!
//! The panel deletes the row of an instance and reports nothing, so the hours since its last charge cannot be charged any more. At
//! the end of a pass the meter of every instance that exists was moved within the last hour or has an open hold, so one comparison
//! of the meters with the instances finds those that are gone.

use chrono::{DateTime, SecondsFormat};
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbErr, QueryResult, Value};
use tracing::{debug, warn};

use super::{
    BillingError, Mode,
    decide::{HoldRow, Instance, Meter},
    id::Id,
    panel_time::PanelTime,
    pass::Pass,
    read, rows,
};
use crate::{
    BILLING_JOB, columns,
    currency::Currency,
    db::{begin, begin_read, statement},
    fence,
    hold::Reason,
    money::{Money, WalletUnit},
    period::{Micros, whole_hours},
    uncharged::Debt,
};

/// How many are recorded by one run at most; the next run continues.
pub(super) const AT_MOST: usize = 100_000;
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

/// Records the deleted instances; in a dry run only counts them.
pub(super) async fn record_deleted(pass: &Pass<'_>) -> Result<Debt, BillingError> {
    let found = pass.insist("find deleted instances", || find(pass)).await?;
    let mut debt = Debt::default();
    for page in found.chunks(PAGE) {
        if matches!(pass.run.mode, Mode::Commit(_))
            && !pass.insist("record deleted instances", || record(pass, page)).await?
        {
            return Err(BillingError::Fenced);
        }
        for gone in page {
            let Lost { hours, amount } = gone.lost(pass.as_of, pass.biller.panel.unit);
            if hours > 0 {
                debt.add(hours, amount, gone.currency.unwrap_or(Currency::NONE));
            }
        }
    }
    Ok(debt)
}

impl Gone {
    fn of(row: &QueryResult) -> Result<Self, DbErr> {
        let meter = read::meter(row, 3)?;
        Ok(Self {
            instance: read::id(row, 0, "billing_meters.instance_id")?,
            organization: read::id(row, 1, "billing_meters.organization_id")?,
            held: row.try_get_by_index(2)?,
            currency: columns::lossy(row, 10).parse().ok(),
            meter: meter
                .ok_or_else(|| DbErr::Type("billing_meters.billed_through is not an instant".to_owned()))?,
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
        Instance {
            id: self.instance.clone(),
            organization: self.organization.clone(),
            label: String::new(),
            plan: String::new(),
            backup_frequency: None,
            provider: None,
            last_billed_at: PanelTime::Null,
            created_at: PanelTime::Null,
            gone: true,
            meter: None,
            held: None,
            transfer: None,
            unreadable: None,
        }
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

async fn find(pass: &Pass<'_>) -> Result<Vec<Gone>, DbErr> {
    let began = std::time::Instant::now();
    let txn = begin_read(&pass.db).await?;
    let values: [Value; 1] = [pass.as_of.into()];
    let rows = txn.query_all_raw(statement(&txn, &pass.biller.sql.deleted_meters, values)).await?;
    txn.commit().await?;
    let took_ms = began.elapsed().as_millis();
    debug!(took_ms, "found {} deleted instances in {took_ms} ms", rows.len());
    let readable = rows.iter().filter_map(|row| {
        let gone = Gone::of(row);
        gone.map_err(|error| warn!("the meter of a deleted instance cannot be read: {error}")).ok()
    });
    Ok(readable.collect())
}

/// Writes one page under the fence of the run; whether that is still the newest.
async fn record(pass: &Pass<'_>, page: &[Gone]) -> Result<bool, DbErr> {
    let Mode::Commit(token) = pass.run.mode else { return Ok(true) };
    let sql = &pass.biller.sql;
    let txn = begin(&pass.db).await?;
    if let Some(settings) = &sql.settings {
        txn.query_one_raw(statement(&txn, settings, [token.0.into(), BILLING_JOB.into()])).await?;
    }
    if !fence::is_newest(&txn, &sql.check_fence, token).await? {
        txn.rollback().await?;
        return Ok(false);
    }
    let ids: Vec<&Id> = page.iter().map(|gone| &gone.instance).collect();
    let ids = serde_json::to_string(&ids).expect("text is always JSON");
    let marked = statement(&txn, &sql.mark_deleted, [pass.as_of.into(), ids.into()]);
    let marked = txn.execute_raw(marked).await?.rows_affected();
    if marked != page.len() as u64 {
        // An earlier attempt was committed, and its answer was lost.
        txn.rollback().await?;
        return Ok(true);
    }
    insert_holds(pass, &txn, page).await?;
    txn.commit().await?;
    Ok(true)
}

async fn insert_holds(pass: &Pass<'_>, txn: &DatabaseTransaction, page: &[Gone]) -> Result<(), DbErr> {
    let lost = page.iter().map(|gone| (gone, gone.lost(pass.as_of, pass.biller.panel.unit)));
    let lost: Vec<_> = lost
        .filter(|(_, lost)| lost.hours > 0)
        .map(|(gone, lost)| (gone, gone.as_instance(), lost))
        .collect();
    let holds: Vec<_> = lost
        .iter()
        .map(|(gone, instance, lost)| HoldRow {
            instance,
            reason: Reason::InstanceDeleted.as_str(),
            detail: gone.detail(pass.as_of),
            hours: Some(lost.hours),
            amount: lost.amount,
            currency: gone.currency,
        })
        .collect();
    if holds.is_empty() {
        return Ok(());
    }
    let rows = rows::holds(pass.biller.panel.backend, pass.as_of, &holds);
    let found = rows.run(txn, &pass.biller.sql.insert_deleted_holds).await?;
    if found == holds.len() as u64 { Ok(()) } else { Err(DbErr::RecordNotInserted) }
}
