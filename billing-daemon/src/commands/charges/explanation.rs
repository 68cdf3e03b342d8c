//! One charge or hold taken apart: which hours, at which price, what was carried, what the wallet held, and by which run.

use billing_entities::{
    Id, Instant, billing_batches, billing_charges, billing_holds, billing_meters, scheduler_runs,
};
use billing_jobs::{
    billing::micros,
    money::{Carry, Money, Rate},
};
use billing_store::{
    begin_read,
    columns::{self, Unreadable},
};
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryFilter,
    QueryOrder, QueryResult, QuerySelect, Statement, Value,
};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    exit::{Exit, Failure},
    format::{count, instant},
    output::Report,
    panel_database::PanelDatabase,
};

/// What is known of one machine at one time. Amounts are decimal text.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Explanation {
    /// The machine.
    pub instance: Uuid,
    /// Its label; unset once it is deleted and was never held.
    pub label: Option<String>,
    /// Whether its row is gone.
    pub deleted: bool,
    /// Up to when its hours are paid.
    pub billed_through: Option<DateTime<Utc>>,
    /// What it is on now.
    pub plan: Option<PlanNow>,
    /// The charge.
    pub charge: Option<Charge>,
    /// The hold that was open then, or is.
    pub hold: Option<Hold>,
    /// What of the panel's rows cannot be read.
    pub unreadable: Vec<String>,
}

/// A plan as it is now.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PlanNow {
    /// As the panel calls it.
    pub name: String,
    /// Base and markup a month, without backups; unset if the plan has no price.
    pub monthly: Option<String>,
}

/// A charge.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Charge {
    /// Who paid.
    pub organization: Uuid,
    /// The first instant of its hours.
    pub period_start: DateTime<Utc>,
    /// The first instant after them.
    pub period_end: DateTime<Utc>,
    /// How many.
    pub hours: i32,
    /// The price of an hour, with six decimals.
    pub hourly_price: String,
    /// The same in 1/730 of a millionth, exactly.
    pub rate: i64,
    /// What the charge before had left over, in 1/730 of a millionth.
    pub carry_before: i64,
    /// What this one left over.
    pub carry_after: i64,
    /// What was taken.
    pub amount: String,
    /// The currency of the amount; `XXX` if there is none.
    pub currency: String,
    /// Whether `carry_before + rate * hours` is exactly the amount and what was carried on.
    pub adds_up: bool,
    /// Whether the panel's own biller made it.
    pub by_panel: bool,
    /// The ledger's row; unset if nothing was taken, or the row is gone.
    pub ledger: Option<Ledger>,
    /// The panel's cycle; gone with the machine.
    pub cycle: Option<Cycle>,
    /// The batch that it was committed in.
    pub batch: Option<Batch>,
}

/// A row of the wallet's ledger.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ledger {
    /// Its id.
    pub id: Uuid,
    /// As the wallet shows it.
    pub description: Option<String>,
    /// What the wallet held before, as the ledger says.
    pub balance_before: Option<String>,
    /// And after.
    pub balance_after: Option<String>,
}

/// A row of the panel's cycles.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cycle {
    /// Its id.
    pub id: Uuid,
    /// `billed`.
    pub status: String,
    /// What the invoice shows.
    pub metadata: serde_json::Value,
}

/// A committed batch, and the run that it belongs to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Batch {
    /// Its number.
    pub id: i64,
    /// When it was committed.
    pub created_at: DateTime<Utc>,
    /// Until when hours were due.
    pub as_of: DateTime<Utc>,
    /// The number under which it was written.
    pub fencing_token: i64,
    /// The run.
    pub run: Uuid,
    /// When the run should have begun, if it is still in the history.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// Who ran it.
    pub daemon_id: Option<String>,
    /// What started it.
    pub cause: Option<String>,
}

/// A hold.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Hold {
    /// Who owes the hours.
    pub organization: Uuid,
    /// The reason's word.
    pub reason: String,
    /// What exactly.
    pub detail: Option<String>,
    /// How many hours are due, if that is known.
    pub hours_due: Option<i64>,
    /// What they cost, if that can be said.
    pub amount_due: Option<String>,
    /// The currency of that, if the organization has one wallet with one.
    pub currency: Option<String>,
    /// Since when.
    pub opened_at: DateTime<Utc>,
    /// When it was last found so.
    pub seen_at: DateTime<Utc>,
    /// When the machine was charged after all.
    pub closed_at: Option<DateTime<Utc>>,
    /// Why it was closed without a charge, if it was.
    pub closed_reason: Option<String>,
}

/// Takes apart what was charged for `instance` - its id, or a label that only one machine has - at `at`, or last.
pub(crate) async fn explain(
    opened: &PanelDatabase,
    instance: &str,
    at: Option<DateTime<Utc>>,
) -> Result<Explanation, Failure> {
    let failed = |error| Failure::database("take the charge apart", &error);
    let txn = begin_read(&opened.db).await.map_err(failed)?;
    let machine = find(&txn, instance).await.map_err(failed)??;
    let explanation = read(&txn, machine, at).await.map_err(failed)?;
    txn.commit().await.map_err(failed)?;
    if explanation.charge.is_none() && explanation.hold.is_none() {
        let when = at.map_or_else(String::new, |at| format!(" at {}", instant(at)));
        let message = format!("machine {} was neither charged nor held{when}", explanation.instance);
        return Err(Failure::new(Exit::Negative, message));
    }
    Ok(explanation)
}

/// A machine that is there, or was.
struct Machine {
    id: Uuid,
    row: Option<Present>,
}

/// What the panel's row of a machine says, as far as it can be read.
struct Present {
    label: String,
    plan_id: Result<String, Unreadable>,
    unreadable: Vec<String>,
}

impl Present {
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

async fn find(txn: &DatabaseTransaction, instance: &str) -> Result<Result<Machine, Failure>, DbErr> {
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
        return Ok(Ok(Machine { id, row: rows.first().map(Present::of) }));
    }
    let ids: Vec<String> = rows.iter().map(|row| columns::lossy(row, "id")).collect();
    Ok(match &rows[..] {
        [row] => ids[0].parse().map(|id| Machine { id, row: Some(Present::of(row)) }).map_err(|_| {
            let message = format!("machine `{instance}` has the id `{}`, which is not a UUID", ids[0]);
            Failure::new(Exit::Negative, message)
        }),
        [] => {
            let message = format!(
                "no machine is labelled `{instance}`: one that was deleted is found by its id, which its charges keep"
            );
            Err(Failure::new(Exit::Negative, message))
        }
        _ => {
            let ids = ids.join(", ");
            let message = format!("several machines are labelled `{instance}`: name one by its id: {ids}");
            Err(Failure::new(Exit::Usage, message))
        }
    })
}

/// The rows of a query on the panel's tables.
async fn rows(
    txn: &DatabaseTransaction,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<Vec<QueryResult>, DbErr> {
    txn.query_all_raw(Statement::from_sql_and_values(txn.get_database_backend(), sql, values)).await
}

/// A parameter that is an id as text.
fn uuid(txn: &DatabaseTransaction, parameter: &str) -> String {
    match txn.get_database_backend() {
        DbBackend::Sqlite => parameter.to_owned(),
        _ => format!("{parameter}::uuid"),
    }
}

async fn read(
    txn: &DatabaseTransaction,
    machine: Machine,
    at: Option<DateTime<Utc>>,
) -> Result<Explanation, DbErr> {
    let Machine { id, row } = machine;
    let mut unreadable = row.as_ref().map(|row| row.unreadable.clone()).unwrap_or_default();
    // Of the meter only this: its other columns may be what cannot be read.
    let meter: Option<Instant> = billing_meters::Entity::find_by_id(Id(id))
        .select_only()
        .column(billing_meters::Column::BilledThrough)
        .into_tuple()
        .one(txn)
        .await?;
    let charge = match last_charge(txn, id, at.unwrap_or(DateTime::<Utc>::MAX_UTC)).await? {
        // A charge that ended before does not say what happened then.
        Some(charge) if at.is_none_or(|at| at < end(&charge)) => {
            Some(take_apart(txn, charge, &mut unreadable).await?)
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
        Some(Present { plan_id: Ok(plan_id), .. }) => plan(txn, plan_id, &mut unreadable).await?,
        _ => None,
    };
    Ok(Explanation {
        instance: id,
        label: row
            .as_ref()
            .map(|row| row.label.clone())
            .or_else(|| holds.first().map(|hold| hold.label.clone())),
        deleted: row.is_none(),
        billed_through: meter.map(|Instant(at)| at),
        plan,
        charge,
        hold: hold.map(|hold| Hold {
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

fn end(charge: &billing_charges::Model) -> DateTime<Utc> {
    charge.period_start.0 + TimeDelta::hours(i64::from(charge.hours))
}

/// The newest charge that begins at `until` or before.
async fn last_charge(
    txn: &DatabaseTransaction,
    instance: Uuid,
    until: DateTime<Utc>,
) -> Result<Option<billing_charges::Model>, DbErr> {
    let backend = sea_orm::ConnectionTrait::get_database_backend(txn);
    // Instants have no form that both databases would accept.
    let (id, before) = match backend {
        DbBackend::Sqlite => ("$1", "$2"),
        _ => ("$1::uuid", "timestamptz 'epoch' + $2 * interval '1 microsecond'"),
    };
    let sql = format!(
        "SELECT * FROM billing_charges WHERE instance_id = {id} AND period_start <= {before}
          ORDER BY period_start DESC LIMIT 1"
    );
    // PostgreSQL's calendar ends before ours.
    let until = until.timestamp_micros().min(8_000_000_000_000_000);
    let values: [Value; 2] = [instance.to_string().into(), until.into()];
    let query = Statement::from_sql_and_values(backend, sql, values);
    billing_charges::Entity::find().from_raw_sql(query).one(txn).await
}

async fn take_apart(
    txn: &DatabaseTransaction,
    charge: billing_charges::Model,
    unreadable: &mut Vec<String>,
) -> Result<Charge, DbErr> {
    let Instant(start) = charge.period_start;
    let before = last_charge(txn, charge.instance_id.0, start - TimeDelta::microseconds(1)).await?;
    let carry_before = before.map_or(0, |before| before.carry);
    let owed = i128::from(carry_before) + i128::from(charge.rate) * i128::from(charge.hours);
    let taken = i128::from(charge.amount) * 73_000 + i128::from(charge.carry);
    let cycle = cycle(txn, &charge, unreadable).await?;
    Ok(Charge {
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

/// The row of the wallet's ledger.
async fn ledger(
    txn: &DatabaseTransaction,
    id: Uuid,
    unreadable: &mut Vec<String>,
) -> Result<Option<Ledger>, DbErr> {
    let sql =
        format!("SELECT description, metadata FROM payment_transactions WHERE id = {}", uuid(txn, "$1"));
    let rows = rows(txn, &sql, [id.to_string().into()]).await?;
    Ok(rows.first().map(|row| {
        let metadata = readable(columns::json(row, "metadata", "payment_transactions.metadata"), unreadable);
        let balance =
            |key: &str| metadata.get(key).map(|value| value.to_string().trim_matches('"').to_owned());
        Ledger {
            id,
            description: Some(columns::lossy(row, "description")).filter(|text| !text.is_empty()),
            balance_before: balance("balance_before"),
            balance_after: balance("balance_after"),
        }
    }))
}

/// The panel's cycle of a charge.
async fn cycle(
    txn: &DatabaseTransaction,
    charge: &billing_charges::Model,
    unreadable: &mut Vec<String>,
) -> Result<Option<Cycle>, DbErr> {
    // The panel reckons in milliseconds.
    let sql = format!(
        "SELECT CAST(id AS text) AS id, metadata FROM vps_billing_cycles
          WHERE vps_instance_id = {} AND status = 'billed' AND {} BETWEEN $2 - 1000 AND $2 + 1000",
        uuid(txn, "$1"),
        micros(txn.get_database_backend(), "billing_period_start"),
    );
    let start = charge.period_start.0.timestamp_micros();
    let rows = rows(txn, &sql, [charge.instance_id.to_string().into(), start.into()]).await?;
    let cycle = rows.iter().find_map(|row| Some((row, columns::lossy(row, "id").parse().ok()?)));
    Ok(cycle.map(|(row, id)| Cycle {
        id,
        status: "billed".to_owned(),
        metadata: readable(columns::json(row, "metadata", "vps_billing_cycles.metadata"), unreadable),
    }))
}

/// The value, or nothing and why in `unreadable`.
fn readable<T: Default>(value: Result<T, Unreadable>, unreadable: &mut Vec<String>) -> T {
    value.unwrap_or_else(|problem| {
        unreadable.push(problem.to_string());
        T::default()
    })
}

async fn batch(txn: &DatabaseTransaction, id: i64) -> Result<Option<Batch>, DbErr> {
    let Some(batch) = billing_batches::Entity::find_by_id(id).one(txn).await? else { return Ok(None) };
    let run = scheduler_runs::Entity::find_by_id(batch.run_id).one(txn).await?;
    Ok(Some(Batch {
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
    txn: &DatabaseTransaction,
    plan_id: &str,
    unreadable: &mut Vec<String>,
) -> Result<Option<PlanNow>, DbErr> {
    let sqlite = txn.get_database_backend() == DbBackend::Sqlite;
    let text = |column: &str| if sqlite { column.to_owned() } else { format!("{column}::text") };
    let sql = format!(
        "SELECT name, {} AS base, {} AS markup FROM vps_plans
          WHERE provider_plan_id = $1 OR {} = $1 ORDER BY provider_plan_id = $1 DESC LIMIT 1",
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
    Ok(Some(PlanNow {
        name: columns::lossy(row, "name"),
        monthly: monthly.map(|monthly| Money(monthly).to_string()),
    }))
}

/// What is carried, as a share of the currency.
fn carried(carry: i64) -> String {
    Rate(Carry(carry).0).per_hour(8)
}

/// The explanation for a terminal.
#[must_use]
pub(crate) fn report(explanation: &Explanation) -> Report {
    let mut report = Report::default();
    let label = explanation.label.as_deref().map_or_else(String::new, |label| format!(" ({label})"));
    let deleted = if explanation.deleted { ", deleted" } else { "" };
    report.add("instance", format!("{}{label}{deleted}", explanation.instance));
    report.add_some(
        "plan now",
        explanation.plan.as_ref().map(|plan| {
            let price =
                plan.monthly.as_ref().map_or("no price".to_owned(), |monthly| format!("{monthly} per month"));
            format!("{}, {price}", plan.name)
        }),
    );
    report.add_some("billed through", explanation.billed_through.map(instant));
    report.add_list("unreadable", explanation.unreadable.iter().cloned());
    if let Some(charge) = &explanation.charge {
        report_charge(charge, &mut report);
    }
    if let Some(hold) = &explanation.hold {
        report_hold(hold, &mut report);
    }
    report
}

fn report_hold(hold: &Hold, report: &mut Report) {
    let detail = hold.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
    report.add("held", format!("{}{detail}", hold.reason));
    let currency = hold.currency.as_ref().map_or_else(String::new, |currency| format!(" {currency}"));
    let amount =
        hold.amount_due.as_ref().map_or("an unknown amount".to_owned(), |due| format!("{due}{currency}"));
    let hours = hold
        .hours_due
        .map_or("an unknown number of hours".to_owned(), |hours| count(hours.unsigned_abs(), "hour"));
    report.add("  due", format!("{amount} for {hours}"));
    report.add("  from", hold.organization.to_string());
    report.add("  since", format!("{}, last seen {}", instant(hold.opened_at), instant(hold.seen_at)));
    report.add_some(
        "  until",
        hold.closed_at.map(|closed| {
            let reason = hold.closed_reason.as_ref();
            let reason =
                reason.map_or_else(String::new, |reason| format!(", closed without a charge: {reason}"));
            format!("{}{reason}", instant(closed))
        }),
    );
}

fn report_charge(charge: &Charge, report: &mut Report) {
    let whose = if charge.by_panel { " by the panel's built-in biller" } else { "" };
    let hours = count(charge.hours.unsigned_abs().into(), "hour");
    report.add("charged", format!("{} {} for {hours}{whose}", charge.amount, charge.currency));
    report.add("  paid by", charge.organization.to_string());
    report.add("  from", instant(charge.period_start));
    report.add("  to", instant(charge.period_end));
    let monthly = monthly(charge.rate);
    report.add(
        "  per hour",
        format!("{} ({monthly} per month of 730 hours, with backups)", charge.hourly_price),
    );
    report.add(
        "  carry",
        format!("{} before, {} after", carried(charge.carry_before), carried(charge.carry_after)),
    );
    let verdict = if charge.adds_up { "exactly" } else { "NO: run `billing-daemon audit`" };
    report.add("  adds up", format!("{verdict} (carry before + hours x price = amount + carry after)"));
    if let Some(ledger) = &charge.ledger {
        let balance = |balance: &Option<String>| balance.clone().unwrap_or_else(|| "unknown".to_owned());
        let (before, after) = (balance(&ledger.balance_before), balance(&ledger.balance_after));
        report.add("  balance", format!("{before} before, {after} after"));
        report.add(
            "  ledger",
            format!("{} `{}`", ledger.id, ledger.description.as_deref().unwrap_or_default()),
        );
    }
    report.add("  cycle", charge.cycle.as_ref().map_or("none".to_owned(), |cycle| cycle.id.to_string()));
    if let Some(batch) = &charge.batch {
        let at = instant(batch.created_at);
        report.add("  batch", format!("{} at {at}, fencing token {}", batch.id, batch.fencing_token));
        report.add("  run", batch.run.to_string());
        if let (Some(daemon), Some(scheduled)) = (&batch.daemon_id, batch.scheduled_at) {
            let cause = batch.cause.as_deref().unwrap_or_default();
            report.add("", format!("on {daemon} ({cause}), for {}", instant(scheduled)));
        }
    }
}

/// A rate as a price a month, which is what it was made from.
fn monthly(rate: i64) -> String {
    // A rate is in 1/730 of a millionth an hour, which is a millionth a month of 730 hours.
    let decimals = if rate % 10_000 == 0 { 2 } else { 6 };
    let scale = 10_i64.pow(6 - decimals);
    let units = rate / scale;
    let one = 10_i64.pow(decimals);
    format!("{}.{:0width$}", units / one, units % one, width = decimals as usize)
}
