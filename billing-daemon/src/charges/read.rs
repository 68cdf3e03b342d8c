//! Reads one charge or hold with the hours, the price, the carry, the balance and the run.

use billing_entities::{
    Id, Instant, billing_batches, billing_charges, billing_holds, billing_meters, scheduler_runs,
};
use billing_jobs::{
    billing::micros,
    money::{Money, Rate},
};
use billing_store::{StatementLimit, Transaction};
use billing_store::{
    begin_read,
    columns::{self, Unreadable},
};
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityTrait, QueryFilter, QueryOrder, QueryResult,
    QuerySelect, Statement, Value,
};
use uuid::Uuid;

use super::{
    prices::seen_prices,
    search::{Search, end},
    views::{BatchView, ChargeExplanation, ChargeView, CycleView, HoldView, LedgerView, PlanView},
};
use crate::{
    exit::{Exit, Failure},
    format::instant,
    panel_database::PanelDatabase,
};

/// Explains the charge or hold of an instance, given by its id or a unique label, at `at` or the latest.
pub(crate) async fn explain(
    opened: &PanelDatabase,
    instance: &str,
    at: Option<DateTime<Utc>>,
) -> Result<ChargeExplanation, Failure> {
    let failed = |error| Failure::database("explain the charge", &error);
    let txn = begin_read(&opened.db, StatementLimit::Report).await.map_err(failed)?;
    let found = find(&txn, instance).await.map_err(failed)??;
    let explanation = read(&txn, found, at).await.map_err(failed)?;
    txn.commit().await.map_err(failed)?;
    if explanation.charge.is_none() && explanation.hold.is_none() {
        let when = at.map_or_else(String::new, |at| format!(" at {}", instant(at)));
        let message = format!("instance {} was neither charged nor held{when}", explanation.instance);
        return Err(Failure::new(Exit::Negative, message));
    }
    Ok(explanation)
}

/// An instance that exists or existed.
struct FoundInstance {
    id: Uuid,
    row: Option<PresentRow>,
}

/// The panel's row of an instance, as far as it can be read.
struct PresentRow {
    label: String,
    plan_id: Result<String, Unreadable>,
    unreadable: Vec<String>,
}

impl PresentRow {
    fn of(row: &QueryResult) -> Self {
        let text = |name, column| columns::text(row, name, column);
        let plan_id = text("plan_id", "vps_instances.plan_id");
        let organization = text("organization_id", "vps_instances.organization_id").err();
        let unreadable = [text("label", "vps_instances.label").err(), plan_id.clone().err(), organization];
        Self {
            label: columns::lossy(row, "label"),
            plan_id,
            unreadable: unreadable.into_iter().flatten().map(|unreadable| unreadable.to_string()).collect(),
        }
    }
}

async fn find(txn: &Transaction, instance: &str) -> Result<Result<FoundInstance, Failure>, DbErr> {
    let by_id = instance.parse::<Uuid>().ok();
    let condition = match by_id {
        Some(_) => format!("id = {}", uuid(txn, "$1")),
        None => "label = $1".to_owned(),
    };
    let value = by_id.map_or_else(|| instance.to_owned(), |id| id.to_string());
    let sql = format!(
        "SELECT CAST(id AS text) AS id, CAST(organization_id AS text) AS organization_id, label, plan_id
           FROM vps_instances WHERE {condition} LIMIT 20"
    );
    let rows = rows(txn, &sql, [value.into()]).await?;
    if let Some(id) = by_id {
        return Ok(Ok(FoundInstance { id, row: rows.first().map(PresentRow::of) }));
    }
    let ids: Vec<String> = rows.iter().map(|row| columns::lossy(row, "id")).collect();
    Ok(match &rows[..] {
        [row] => {
            ids[0].parse().map(|id| FoundInstance { id, row: Some(PresentRow::of(row)) }).map_err(|_| {
                let message = format!("instance `{instance}` has the id `{}`, which is not a UUID", ids[0]);
                Failure::new(Exit::Negative, message)
            })
        }
        [] => {
            let message = format!(
                "no instance is labelled `{instance}`: use the id of a deleted instance, which its charges keep"
            );
            Err(Failure::new(Exit::Negative, message))
        }
        _ => {
            let ids = ids.join(", ");
            let message = format!("several instances are labelled `{instance}`: use one of the ids {ids}");
            Err(Failure::new(Exit::Usage, message))
        }
    })
}

/// Reads rows of the panel's tables.
async fn rows(
    txn: &Transaction,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<Vec<QueryResult>, DbErr> {
    txn.query_all_raw(Statement::from_sql_and_values(txn.get_database_backend(), sql, values)).await
}

/// The SQL of a parameter that is an id as text.
fn uuid(txn: &Transaction, parameter: &str) -> String {
    match txn.get_database_backend() {
        DbBackend::Sqlite => parameter.to_owned(),
        _ => format!("{parameter}::uuid"),
    }
}

async fn read(
    txn: &Transaction,
    found: FoundInstance,
    at: Option<DateTime<Utc>>,
) -> Result<ChargeExplanation, DbErr> {
    let FoundInstance { id, row } = found;
    let mut unreadable = row.as_ref().map(|row| row.unreadable.clone()).unwrap_or_default();
    // Only this column of the meter: another one may be unreadable.
    let meter: Option<Instant> = billing_meters::Entity::find_by_id(Id(id))
        .select_only()
        .column(billing_meters::Column::BilledThrough)
        .into_tuple()
        .one(txn)
        .await?;
    // The meter of a charged instance is never deleted.
    let last = match meter {
        Some(Instant(watermark)) => {
            let until = at.unwrap_or(DateTime::<Utc>::MAX_UTC);
            Search { instance: id, until, end: watermark, newest_batch: i64::MAX }.run(txn).await?
        }
        None => None,
    };
    let charge = match last {
        // A charge that ended before that time does not explain it.
        Some(charge) if at.is_none_or(|at| at < end(&charge)) => {
            Some(charge_view(txn, charge, &mut unreadable).await?)
        }
        _ => None,
    };
    let holds = billing_holds::Entity::find()
        .filter(billing_holds::Column::InstanceId.eq(Id(id)))
        .order_by_desc(billing_holds::Column::Id)
        .all(txn)
        .await?;
    let covers = |hold: &&billing_holds::Model| match at {
        None => hold.closed_at.is_none(),
        Some(at) => {
            let since = hold.opened_at.0 - TimeDelta::hours(hold.hours_due.unwrap_or_default());
            since <= at && hold.closed_at.is_none_or(|Instant(closed)| at < closed)
        }
    };
    let uncharged = || holds.iter().find(|hold| at.is_none() && hold.closed_reason.is_some());
    let hold = holds.iter().find(covers).or_else(uncharged);
    let plan = match &row {
        Some(PresentRow { plan_id: Ok(plan_id), .. }) => plan(txn, plan_id, &mut unreadable).await?,
        _ => None,
    };
    let prices = match &plan {
        Some(plan) => seen_prices(txn, &plan.id, charge.as_ref()).await?,
        None => Vec::new(),
    };
    Ok(ChargeExplanation {
        instance: id,
        label: row
            .as_ref()
            .map(|row| row.label.clone())
            .or_else(|| holds.first().map(|hold| hold.label.clone())),
        deleted: row.is_none(),
        billed_through: meter.map(|Instant(at)| at),
        plan,
        prices,
        charge,
        hold: hold.map(|hold| HoldView {
            organization: hold.organization_id.0,
            reason: hold.reason.clone(),
            detail: hold.detail.clone(),
            hours_due: hold.hours_due,
            amount_due: hold.amount_due.map(|amount| Money(amount).to_string()),
            currency: hold.currency.clone(),
            opened_at: hold.opened_at.0,
            seen_at: hold.seen_at.0,
            closed_at: hold.closed_at.map(|Instant(at)| at),
            closed_reason: hold.closed_reason.clone(),
        }),
        unreadable,
    })
}

async fn charge_view(
    txn: &Transaction,
    charge: billing_charges::Model,
    unreadable: &mut Vec<String>,
) -> Result<ChargeView, DbErr> {
    let Instant(start) = charge.period_start;
    let before = Search {
        instance: charge.instance_id.0,
        until: start - TimeDelta::microseconds(1),
        end: start,
        newest_batch: charge.batch_id,
    };
    let carry_before = before.run(txn).await?.map_or(0, |before| before.carry);
    let owed = i128::from(carry_before) + i128::from(charge.rate) * i128::from(charge.hours);
    let taken = i128::from(charge.amount) * 73_000 + i128::from(charge.carry);
    let cycle = cycle(txn, &charge, unreadable).await?;
    Ok(ChargeView {
        organization: charge.organization_id.0,
        period_start: start,
        period_end: end(&charge),
        hours: charge.hours,
        hourly_price: Rate(charge.rate).per_hour(6),
        rate: charge.rate,
        carry_before,
        carry_after: charge.carry,
        amount: Money(charge.amount).to_string(),
        currency: charge.currency,
        adds_up: if charge.by_panel { charge.carry == carry_before } else { owed == taken },
        by_panel: charge.by_panel,
        ledger: match charge.payment_transaction_id {
            Some(Id(id)) => ledger(txn, id, unreadable).await?,
            None => None,
        },
        cycle,
        batch: batch(txn, charge.batch_id).await?,
    })
}

/// Reads the row of the wallet ledger.
async fn ledger(
    txn: &Transaction,
    id: Uuid,
    unreadable: &mut Vec<String>,
) -> Result<Option<LedgerView>, DbErr> {
    let sql =
        format!("SELECT description, metadata FROM payment_transactions WHERE id = {}", uuid(txn, "$1"));
    let rows = rows(txn, &sql, [id.to_string().into()]).await?;
    Ok(rows.first().map(|row| {
        let metadata = readable(columns::json(row, "metadata", "payment_transactions.metadata"), unreadable);
        let balance =
            |key: &str| metadata.get(key).map(|value| value.to_string().trim_matches('"').to_owned());
        LedgerView {
            id,
            description: Some(columns::lossy(row, "description")).filter(|text| !text.is_empty()),
            balance_before: balance("balance_before"),
            balance_after: balance("balance_after"),
        }
    }))
}

/// Reads the panel's billing cycle of a charge. Only those of the panel's own biller, of charges without a debit and repaired ones have
/// another id than the debit; then all cycles are read, unless the panel has an index that finds them.
async fn cycle(
    txn: &Transaction,
    charge: &billing_charges::Model,
    unreadable: &mut Vec<String>,
) -> Result<Option<CycleView>, DbErr> {
    let backend = txn.get_database_backend();
    // The panel stores milliseconds.
    let by_instance = format!(
        "SELECT CAST(id AS text) AS id, metadata FROM vps_billing_cycles
          WHERE vps_instance_id = {} AND status = 'billed' AND {} BETWEEN $2 - 1000 AND $2 + 1000",
        uuid(txn, "$1"),
        micros(backend, "billing_period_start"),
    );
    let start = charge.period_start.0.timestamp_micros();
    let values: [Value; 2] = [charge.instance_id.to_string().into(), start.into()];
    let mut found = Vec::new();
    if let Some(debit) = charge.payment_transaction_id {
        let by_debit = format!("{by_instance} AND id = {}", uuid(txn, "$3"));
        found = rows(txn, &by_debit, values.clone().into_iter().chain([debit.to_string().into()])).await?;
    }
    if found.is_empty() {
        found = rows(txn, &by_instance, values).await?;
    }
    let cycle = found.iter().find_map(|row| Some((row, columns::lossy(row, "id").parse().ok()?)));
    Ok(cycle.map(|(row, id)| CycleView {
        id,
        status: "billed",
        metadata: readable(columns::json(row, "metadata", "vps_billing_cycles.metadata"), unreadable),
    }))
}

/// Returns the value, or the default and adds the problem to `unreadable`.
fn readable<T: Default>(value: Result<T, Unreadable>, unreadable: &mut Vec<String>) -> T {
    value.unwrap_or_else(|problem| {
        unreadable.push(problem.to_string());
        T::default()
    })
}

async fn batch(txn: &Transaction, id: i64) -> Result<Option<BatchView>, DbErr> {
    let Some(batch) = billing_batches::Entity::find_by_id(id).one(txn).await? else { return Ok(None) };
    let run = scheduler_runs::Entity::find_by_id(batch.run_id).one(txn).await?;
    Ok(Some(BatchView {
        id,
        created_at: batch.created_at.0,
        as_of: batch.as_of.0,
        fencing_token: batch.fencing_token,
        run: batch.run_id.0,
        scheduled_at: run.as_ref().map(|run| run.scheduled_at.0),
        daemon_id: run.as_ref().map(|run| run.daemon_id.clone()),
        cause: run.map(|run| run.cause),
    }))
}

async fn plan(
    txn: &Transaction,
    plan_id: &str,
    unreadable: &mut Vec<String>,
) -> Result<Option<PlanView>, DbErr> {
    let sqlite = txn.get_database_backend() == DbBackend::Sqlite;
    let text = |column: &str| if sqlite { column.to_owned() } else { format!("{column}::text") };
    let sql = format!(
        "SELECT {} AS id, name, {} AS base, {} AS markup FROM vps_plans
          WHERE provider_plan_id = $1 OR {} = $1 ORDER BY provider_plan_id = $1 DESC LIMIT 1",
        text("id"),
        text("base_price"),
        text("markup_price"),
        text("id"),
    );
    let rows = rows(txn, &sql, [plan_id.into()]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let price = |name: &str, column| -> Result<Option<Money>, Unreadable> {
        if sqlite {
            return Ok(columns::value::<Option<i64>>(row, name, column)?.map(Money));
        }
        let Some(text) = columns::optional_text(row, name, column)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Unreadable::new(column, format!("is {text}")))
    };
    let base = readable(price("base", "vps_plans.base_price"), unreadable);
    let markup = readable(price("markup", "vps_plans.markup_price"), unreadable).unwrap_or_default();
    let monthly = base.and_then(|base| base.0.checked_add(markup.0));
    unreadable.extend(columns::text(row, "name", "vps_plans.name").err().map(|problem| problem.to_string()));
    Ok(Some(PlanView {
        id: columns::lossy(row, "id"),
        name: columns::lossy(row, "name"),
        monthly: monthly.map(|monthly| Money(monthly).to_string()),
    }))
}
