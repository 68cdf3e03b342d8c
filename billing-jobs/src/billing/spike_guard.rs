//! The spike guard: a run that would charge far more per hour than recent runs charges nothing until an operator approves it. Before
//! the first batch, one statement computes an upper bound. Only if that exceeds the limit, every batch is decided, without a lock or a
//! write, for the exact amount.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use billing_store::StatementLimit;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, QueryResult, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tracing::debug;
use uuid::Uuid;

use super::{
    BillingError, CurrencyTotals, TotalsByCurrency,
    decide::{BillingTerms, decide},
    model::Posting,
    range::{Owners, next_range},
    read::LoadedBatch,
    run_context::RunContext,
    run_details::RunDetails,
    spend_limit::SpendLimit,
    spike::{Excess, Spike},
};
use crate::{
    BILLING_JOB,
    currency::Currency,
    money::{Carry, Money, Rate, cost},
    period::{Change, HOUR},
    price::PriceKey,
};
use billing_store::{
    SQLITE_NOW,
    audit_log::{self, AuditEvent},
    begin, begin_read, columns, query_fleet, query_one, statement,
};

/// How many of the last runs are compared with.
const RECENT: i64 = 24;
/// How many rows of the history are searched for them.
const LOOKED_AT: i64 = 10_000;
/// How many instances are decided at a time for the exact amount.
const PAGE: u32 = 5_000;
/// For how many hours an approval is in force.
pub const APPROVED_FOR_HOURS: i64 = 24;
/// How many of the newest approvals are read: one for each currency, and some more.
const APPROVALS: u32 = 100;
/// By how many tenths an approved run may exceed the announced price per hour: more hours of other instances are due by then.
const APPROVED_TENTHS: i64 = 11;

/// A run that waits for an approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingSpike {
    /// Its row in the audit log.
    pub id: i64,
    /// What it would charge in each currency that is not approved yet.
    pub excesses: Vec<Excess>,
}

/// What is due, compared with recent runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Assessment {
    /// The most that a run may charge in each currency; a missing currency has no limit, because no recent run charged anything in it.
    pub(super) ceilings: BTreeMap<Currency, Money>,
    /// What is due, at most. Unset without a recent run to compare it with.
    pub(super) due: Option<TotalsByCurrency>,
    /// Set if the run would charge more than that.
    pub(super) spike: Option<Spike>,
}

/// Returns what the run may charge.
///
/// # Errors
/// The run would charge more than the limit. That is announced in the audit log.
pub(super) async fn limit_of(
    context: &RunContext<'_>,
    assessment: &Assessment,
) -> Result<SpendLimit, BillingError> {
    if let Some(spike) = &assessment.spike {
        let by = format!("run {}", context.options.id);
        let announced = record_pending_spike(context.db, &by, spike).await;
        announced.map_err(BillingError::database("announce what this run would charge"))?;
        return Err(BillingError::Spike(spike.clone()));
    }
    Ok(SpendLimit::new(assessment.ceilings.clone()))
}

/// Compares the due amounts with the recent runs. Changes nothing.
pub(super) async fn assess(context: &RunContext<'_>) -> Result<Assessment, BillingError> {
    let db = context.db;
    let settings = context.settings;
    if settings.spike_factor == 0 {
        return Ok(Assessment::default());
    }
    let recent = context.retry("read what the last runs charged", || recent(db)).await?;
    if recent.is_empty() {
        return Ok(Assessment::default());
    }
    let approved = context.retry("read the approvals of spikes", || approved(db)).await?;
    let limits = Limits { settings, recent: &recent, approved: &approved };
    let began = Instant::now();
    let bounded = at_most(context).await?;
    let took_ms = began.elapsed().as_millis();
    debug!(took_ms, "at most {} are due; computing that took {took_ms} ms", bounded.amounts());
    // The statement ignores approvals. Where they make a difference, only the decision knows what they cover.
    let differs = !context.approvals.is_empty()
        && context.retry("add up what is due", || upper_bound(context, i64::MAX)).await? != bounded;
    let mut sums = bounded;
    if differs || !limits.exceeded_by(&sums).is_empty() {
        sums = exact_amounts(context).await?;
    }
    let excesses = limits.exceeded_by(&sums);
    let spike = (!excesses.is_empty()).then_some(Spike { excesses });
    Ok(Assessment { ceilings: limits.ceilings(&sums), due: Some(sums), spike })
}

/// What is due, at most, without the hours beyond the catch-up limit. Changes nothing.
pub(super) async fn at_most(context: &RunContext<'_>) -> Result<TotalsByCurrency, BillingError> {
    let catch_up = i64::from(context.settings.max_catch_up_hours);
    context.retry("add up what is due", || upper_bound(context, catch_up)).await
}

/// What the limit of a run depends on.
#[derive(Clone, Copy)]
struct Limits<'a> {
    settings: super::BillingSettings,
    recent: &'a [TotalsByCurrency],
    approved: &'a TotalsByCurrency,
}

impl Limits<'_> {
    /// What may be charged for so many hours in `currency`: the highest price per hour of the recent runs times the factor, but at
    /// least the floor and at least the approved amount. None if no recent run has this currency.
    fn of(self, currency: Currency, hours: i64) -> Option<Money> {
        let for_hours = |sum: CurrencyTotals, tenths: i64| {
            let wide = i128::from(sum.amount.0) * i128::from(hours) * i128::from(tenths);
            let most = wide / (i128::from(sum.hours.max(1)) * 10);
            Money(i64::try_from(most).unwrap_or(i64::MAX))
        };
        let recent = self.recent.iter().filter_map(|sums| sums.of(currency)).filter(|sum| sum.hours > 0);
        let most = recent.map(|sum| for_hours(sum, self.settings.spike_factor)).max()?;
        let approved = self.approved.of(currency).map_or(Money(0), |sum| for_hours(sum, APPROVED_TENTHS));
        Some(most.max(approved).max(self.settings.spike_floor))
    }

    fn exceeded_by(self, sums: &TotalsByCurrency) -> Vec<Excess> {
        let excess = |(currency, sum): (Currency, CurrencyTotals)| {
            let limit = self.of(currency, sum.hours).filter(|limit| sum.amount > *limit)?;
            Some(Excess { currency, due: sum, limit })
        };
        sums.iter().filter_map(excess).collect()
    }

    /// The limits of a run that would charge `sums`, also for the other currencies that it may find.
    fn ceilings(self, sums: &TotalsByCurrency) -> BTreeMap<Currency, Money> {
        let known: BTreeSet<Currency> =
            self.recent.iter().flat_map(TotalsByCurrency::iter).map(|(currency, _)| currency).collect();
        let ceiling = |currency: Currency| {
            let hours = sums.of(currency).map_or(0, |sum| sum.hours);
            Some((currency, self.of(currency, hours)?))
        };
        known.into_iter().filter_map(ceiling).collect()
    }
}

/// What each of the last finished runs charged, if it charged anything.
async fn recent(db: &DatabaseConnection) -> Result<Vec<TotalsByCurrency>, DbErr> {
    // A row with invalid figures does not count.
    let (details, hours) = match db.get_database_backend() {
        DbBackend::Sqlite => {
            ("details", "CASE WHEN json_valid(details) THEN CAST(details ->> 'hours' AS INTEGER) END")
        }
        _ => (
            "details::text",
            "CASE WHEN details ->> 'hours' ~ '^[0-9]{1,18}$' THEN (details ->> 'hours')::bigint END",
        ),
    };
    let sql = format!(
        "SELECT {details} AS details
           FROM (SELECT details, status, items, started_at FROM scheduler_runs
                  WHERE job = $1 ORDER BY started_at DESC LIMIT $2) AS runs
          WHERE status = 'done' AND items > 0 AND {hours} > 0
          ORDER BY started_at DESC LIMIT $3"
    );
    let values: [Value; 3] = [BILLING_JOB.into(), LOOKED_AT.into(), RECENT.into()];
    let rows = query_fleet(db, statement(db, &sql, values)).await?;
    let totals = rows.iter().map(|row| {
        let details: Json = serde_json::from_str(&columns::lossy(row, "details")).unwrap_or_default();
        RunDetails::from_json(&details).totals.unwrap_or_default().currencies
    });
    Ok(totals.collect())
}

/// The currencies of the wallets.
enum Currencies {
    /// Every wallet has this one.
    One(Currency),
    /// Each wallet must be read.
    Several,
}

impl Currencies {
    async fn of(db: &DatabaseConnection) -> Result<Self, DbErr> {
        let sql = "SELECT min(currency) AS first, max(currency) AS last, count(*) = count(currency) AS complete FROM wallets";
        let Some(row) = query_one(db, statement(db, sql, [])).await? else { return Ok(Self::Several) };
        let (first, last) = (columns::lossy(&row, "first"), columns::lossy(&row, "last"));
        let only = first.parse().ok().filter(|_| first == last);
        let complete: bool = row.try_get("", "complete")?;
        Ok(only.filter(|_| complete).map_or(Self::Several, Self::One))
    }
}

/// The upper bound of the charges of the run. An instance that is held because its wallet does not cover an hour counts with the
/// balance and without its hours: old debts must not make a spike look small.
async fn upper_bound(context: &RunContext<'_>, most_hours: i64) -> Result<TotalsByCurrency, DbErr> {
    let db = context.db;
    let currencies = Currencies::of(db).await?;
    let values: [Value; 2] = [context.as_of.into(), most_hours.into()];
    let sql = match currencies {
        Currencies::One(_) => &context.sql.due_amounts,
        Currencies::Several => &context.sql.due_amounts_by_currency,
    };
    let txn = begin_read(db, StatementLimit::Fleet).await?;
    if let Some(settings) = &context.sql.whole_table_settings {
        txn.query_one_raw(statement(&txn, settings, [])).await?;
    }
    let groups = txn.query_all_raw(statement(&txn, sql, values)).await?;
    txn.commit().await?;
    let mut sums = TotalsByCurrency::default();
    for group in &groups {
        let currency = match currencies {
            Currencies::One(currency) => Ok(currency),
            Currencies::Several => columns::lossy(group, "currency").parse(),
        };
        // Without a currency nothing is charged.
        let Ok(currency) = currency else { continue };
        if let Some(sum) = of_group(context, group)? {
            sums.add(currency, sum);
        }
    }
    Ok(sums)
}

/// The upper bound of the instances of one plan at one rate; none if they cannot be charged.
fn of_group(context: &RunContext<'_>, group: &QueryResult) -> Result<Option<CurrencyTotals>, DbErr> {
    if group.try_get("", "broke")? {
        let balance: i64 = group.try_get("", "balance")?;
        return Ok(Some(CurrencyTotals { charges: 0, hours: 0, amount: Money(balance.max(0)) }));
    }
    let gone: bool = group.try_get("", "gone")?;
    let plan = columns::text(group, "plan", "vps_instances.plan_id");
    let backups = columns::optional_text(group, "backups", "vps_instances.backup_frequency");
    // What cannot be read is held.
    let provider = columns::optional_text(group, "provider", "vps_instances.provider_id");
    let (Ok(plan), Ok(backups), Ok(provider)) = (plan, backups, provider) else { return Ok(None) };
    let key =
        PriceKey { plan_id: &plan, provider_id: provider.as_deref(), backup_frequency: backups.as_deref() };
    let now = context.prices.rate(key).ok().map(|rate| rate.total).filter(|_| !gone);
    if now.is_none() && !gone {
        return Ok(None);
    }
    let rate_of_meter: Option<i64> = group.try_get("", "rate")?;
    let changes: Vec<Change> = serde_json::from_str(&columns::lossy(group, "changes")).unwrap_or_default();
    // A price that is seen for the first time now applies to later hours only. It counts all the same: a wrong price must be found
    // before the meters contain it, or the hours until its correction keep it.
    let known =
        rate_of_meter.map(Rate).into_iter().chain(changes.iter().map(|change| change.rate.total)).chain(now);
    // Without a rate in the meter, the prices count that runs have seen in the time of these hours.
    let longest: i64 = group.try_get("", "longest")?;
    let began = context.as_of.saturating_sub(longest.saturating_mul(HOUR));
    let seen = context.prices.highest_after(key, began).ok().filter(|_| rate_of_meter.is_none() && !gone);
    let Some(rate) = known.chain(seen).max() else { return Ok(None) };
    let (hours, instances): (i64, i64) = (group.try_get("", "hours")?, group.try_get("", "machines")?);
    // Each instance may carry up to one unit of its wallet.
    let unit = context.panel.unit;
    let carried = instances.saturating_mul(unit.ten_thousandths());
    let amount = cost(rate, hours, Carry(0), unit).map_or(i64::MAX, |(amount, _)| amount.0);
    Ok(Some(CurrencyTotals { charges: instances, hours, amount: Money(amount.saturating_add(carried)) }))
}

/// The exact charges of the run: every batch is read and decided as it will be, and at the current prices, one in memory at a time.
/// Nothing is locked or written.
async fn exact_amounts(context: &RunContext<'_>) -> Result<TotalsByCurrency, BillingError> {
    let prices_of_now = context.prices.clone().without_seen();
    let mut sums = TotalsByCurrency::default();
    let mut after = None;
    while let Some(range) = next_range(context, after, PAGE).await? {
        if (context.options.stop)().is_some() {
            break;
        }
        let read = || read_range(context, &range.owners);
        let mut loaded = context.retry("add up what is due", read).await?;
        let Posting { totals: as_known, .. } =
            decide(&context.terms(None), &loaded.wallets, &loaded.instances);
        for instance in loaded.instances.iter_mut().filter(|instance| !instance.gone) {
            if let Some(meter) = &mut instance.meter {
                meter.rates = None;
            }
        }
        let terms = BillingTerms { prices: &prices_of_now, ..context.terms(None) };
        let Posting { totals: as_of_now, .. } = decide(&terms, &loaded.wallets, &loaded.instances);
        sums += &as_known.currencies.larger_of_each(&as_of_now.currencies);
        after = range.last();
    }
    Ok(sums)
}

async fn read_range(context: &RunContext<'_>, owners: &Owners) -> Result<LoadedBatch, DbErr> {
    let sql = context.sql;
    let Owners::Range { first, last } = owners else { return Ok(LoadedBatch::of(&[], &[])) };
    let txn = begin_read(context.db, StatementLimit::Fleet).await?;
    if let Some(settings) = &sql.plan_settings {
        txn.query_one_raw(statement(&txn, settings, [])).await?;
    }
    let range = [first.clone(), last.clone()];
    let wallets = txn.query_all_raw(statement(&txn, &sql.read_wallets, range.clone())).await?;
    let values = [context.as_of.into()].into_iter().chain(range);
    let instances = txn.query_all_raw(statement(&txn, &sql.read_due, values)).await?;
    txn.commit().await?;
    Ok(LoadedBatch::of(&wallets, &instances))
}

const ANNOUNCE: &str = "announce a spike";
const APPROVE: &str = "approve a spike";

/// Records in the audit log what waits for an approval, once for each amount.
///
/// # Errors
/// The database fails.
pub async fn record_pending_spike(
    db: &DatabaseConnection,
    by: &str,
    Spike { excesses }: &Spike,
) -> Result<(), DbErr> {
    if newest_announcement(db).await?.is_some_and(|announced| announced.excesses == *excesses) {
        return Ok(());
    }
    let entry = AuditEvent::new(by, ANNOUNCE, BILLING_JOB, json!({ "excesses": excesses }));
    audit_log::append_in_own_transaction(db, &entry).await
}

/// The newest rows of this action: their ids, how many hours old they are, and their details.
async fn newest(db: &DatabaseConnection, action: &str, limit: u32) -> Result<Vec<(i64, i64, Json)>, DbErr> {
    let age = match db.get_database_backend() {
        DbBackend::Sqlite => format!("({SQLITE_NOW} - at) / 3600000000"),
        _ => "floor(extract(epoch FROM now() - at) / 3600)::bigint".to_owned(),
    };
    let sql = format!(
        "SELECT id, details, {age} AS age FROM scheduler_audit_log WHERE action = $1 AND job = $2 ORDER BY id DESC LIMIT {limit}"
    );
    let rows = query_fleet(db, statement(db, &sql, [action.into(), BILLING_JOB.into()])).await?;
    let row = |row: &QueryResult| {
        let details = serde_json::from_str(&columns::lossy(row, "details")).unwrap_or_default();
        Ok((row.try_get("", "id")?, row.try_get("", "age")?, details))
    };
    rows.iter().map(row).collect()
}

async fn newest_announcement(db: &DatabaseConnection) -> Result<Option<PendingSpike>, DbErr> {
    let Some((id, _, mut details)) = newest(db, ANNOUNCE, 1).await?.pop() else { return Ok(None) };
    let excesses = serde_json::from_value(details["excesses"].take());
    Ok(excesses.ok().map(|excesses| PendingSpike { id, excesses }))
}

/// An approval, as it is in the audit log.
#[derive(Serialize, Deserialize)]
struct Approval {
    /// The row of the announcement.
    announced: i64,
    #[serde(flatten)]
    excess: Excess,
    for_hours: i64,
}

/// The newest approvals: how many hours old they are, and what they approve.
async fn approvals(db: &DatabaseConnection) -> Result<Vec<(i64, Approval)>, DbErr> {
    let rows = newest(db, APPROVE, APPROVALS).await?;
    // What cannot be read approves nothing.
    Ok(rows
        .into_iter()
        .filter_map(|(_, age, details)| Some((age, serde_json::from_value(details).ok()?)))
        .collect())
}

/// The run that was announced last, with what of it is not approved yet; none if all of it is.
///
/// # Errors
/// The database fails.
pub async fn pending_spike(db: &DatabaseConnection) -> Result<Option<PendingSpike>, DbErr> {
    let Some(mut announced) = newest_announcement(db).await? else { return Ok(None) };
    for (_, approval) in approvals(db).await? {
        if approval.announced == announced.id {
            announced.excesses.retain(|excess| excess.currency != approval.excess.currency);
        }
    }
    Ok(Some(announced).filter(|announced| !announced.excesses.is_empty()))
}

/// Approves `excess`, which row `announced` of the audit log announced, in the name of `by`. The approval is in force for
/// [`APPROVED_FOR_HOURS`].
///
/// # Errors
/// The database fails.
pub async fn approve(db: &DatabaseConnection, announced: i64, excess: Excess, by: &str) -> Result<(), DbErr> {
    approve_once(db, announced, excess, by, None, Uuid::now_v7()).await.map(|_| ())
}

/// As [`approve`], with a reason. Returns whether it is new: an approval with the same `request` is recorded once.
///
/// # Errors
/// The database fails.
pub async fn approve_once(
    db: &DatabaseConnection,
    announced: i64,
    excess: Excess,
    by: &str,
    reason: Option<&str>,
    request: Uuid,
) -> Result<bool, DbErr> {
    let approval = Approval { announced, excess, for_hours: APPROVED_FOR_HOURS };
    let event = AuditEvent::new(by, APPROVE, BILLING_JOB, json!(approval));
    let entry = AuditEvent { reason: reason.map(str::to_owned), ..event };
    let txn = begin(db).await?;
    let is_new = audit_log::append_once(&txn, &entry, request).await?;
    txn.commit().await?;
    Ok(is_new)
}

/// What the approvals in force allow: of each currency the newest.
async fn approved(db: &DatabaseConnection) -> Result<TotalsByCurrency, DbErr> {
    let mut approved = TotalsByCurrency::default();
    for (age, Approval { excess: Excess { currency, due, .. }, .. }) in approvals(db).await? {
        if age < APPROVED_FOR_HOURS && approved.of(currency).is_none() {
            approved.add(currency, due);
        }
    }
    Ok(approved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::{
        BillingSettings,
        spend_limit::tests::{code, sums},
    };

    #[test]
    fn spike_limit_uses_recent_peak_hour() {
        let settings =
            BillingSettings { spike_factor: 30, spike_floor: Money(1_000), ..BillingSettings::default() };
        let recent = [sums(&[("USD", 70_000, 1_000), ("EUR", 1, 1)]), sums(&[("USD", 60_000, 1_000)])];
        for (currency, hours, approved, expected) in [
            ("USD", 1_000, None, Some(210_000)),
            ("USD", 72_000, None, Some(72 * 210_000)),
            ("USD", 2, None, Some(1_000)),
            ("USD", 1_000, Some(("USD", 700_000, 1_000)), Some(770_000)),
            ("USD", 2_000, Some(("USD", 700_000, 1_000)), Some(1_540_000)),
            ("USD", 1_000, Some(("USD", 1, 1)), Some(210_000)),
            ("USD", 1_000, Some(("EUR", 700_000, 1_000)), Some(210_000)),
            ("USD", i64::MAX, None, Some(i64::MAX)),
            ("EUR", 1_000, None, Some(3_000)),
            ("GBP", 1_000, None, None),
        ] {
            let approved = sums(approved.as_slice());
            let limits = Limits { settings, recent: &recent, approved: &approved };
            assert_eq!(
                limits.of(code(currency), hours),
                expected.map(Money),
                "{currency} {hours} {approved:?}"
            );
        }
    }
}
