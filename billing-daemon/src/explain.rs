//! One charge or hold taken apart: which hours, at which price, what was carried, what the wallet held, and by which run.

use billing_entities::{
    Id, Instant, billing_batches, billing_charges, billing_holds, billing_job_runs, billing_meters,
    payment_transactions, vps_billing_cycles, vps_instances, vps_plans,
};
use billing_jobs::{
    begin_read,
    money::{Carry, Money, Rate},
};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    Statement, Value,
};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    exit::{Exit, Failure},
    runtime::Opened,
};

/// What is known of one machine at one time. Amounts are decimal text.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
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
}

/// A plan as it is now.
#[derive(Clone, Debug, Serialize)]
pub struct PlanNow {
    /// As the panel calls it.
    pub name: String,
    /// Base and markup a month, without backups; unset if the plan has no price.
    pub monthly: Option<String>,
}

/// A charge.
#[derive(Clone, Debug, Serialize)]
pub struct Charge {
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
pub struct Ledger {
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
pub struct Cycle {
    /// Its id.
    pub id: Uuid,
    /// `billed`.
    pub status: String,
    /// What the invoice shows.
    pub metadata: serde_json::Value,
}

/// A committed batch, and the run that it belongs to.
#[derive(Clone, Debug, Serialize)]
pub struct Batch {
    /// Its number.
    pub id: i64,
    /// When it was committed.
    pub created_at: DateTime<Utc>,
    /// Until when hours were due.
    pub as_of: DateTime<Utc>,
    /// The number under which it was written.
    pub fence: i64,
    /// The run.
    pub run: Uuid,
    /// When the run should have begun, if it is still in the history.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// Who ran it.
    pub daemon: Option<String>,
    /// What started it.
    pub trigger: Option<String>,
}

/// A hold.
#[derive(Clone, Debug, Serialize)]
pub struct Hold {
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
pub async fn explain(
    opened: &Opened,
    instance: &str,
    at: Option<DateTime<Utc>>,
) -> Result<Explanation, Failure> {
    let failed = |error| Failure::database("take the charge apart", &error);
    let txn = begin_read(&opened.db).await.map_err(failed)?;
    let machine = find(&txn, instance).await.map_err(failed)??;
    let explanation = read(&txn, machine, at).await.map_err(failed)?;
    txn.commit().await.map_err(failed)?;
    if explanation.charge.is_none() && explanation.hold.is_none() {
        let when = at.map_or_else(String::new, |at| format!(" at {}", shown(at)));
        let message = format!("machine {} was neither charged nor held{when}", explanation.instance);
        return Err(Failure::new(Exit::Negative, message));
    }
    Ok(explanation)
}

/// A machine that is there, or was.
struct Machine {
    id: Uuid,
    row: Option<vps_instances::Model>,
}

async fn find(txn: &DatabaseTransaction, instance: &str) -> Result<Result<Machine, Failure>, DbErr> {
    use vps_instances::{Column, Entity};
    if let Ok(id) = instance.parse::<Uuid>() {
        let row = Entity::find().filter(Column::Id.eq(Id(id))).one(txn).await?;
        return Ok(Ok(Machine { id, row }));
    }
    let mut rows = Entity::find().filter(Column::Label.eq(instance)).limit(20).all(txn).await?;
    Ok(match (rows.pop(), rows.is_empty()) {
        (Some(row), true) => Ok(Machine { id: row.id.0, row: Some(row) }),
        (Some(last), false) => {
            let ids = rows.iter().chain([&last]).map(|row| row.id.to_string()).collect::<Vec<_>>().join(", ");
            let message = format!("several machines are labelled `{instance}`: name one by its id: {ids}");
            Err(Failure::new(Exit::Usage, message))
        }
        (None, _) => {
            let message = format!(
                "no machine is labelled `{instance}`: one that was deleted is found by its id, which its charges keep"
            );
            Err(Failure::new(Exit::Negative, message))
        }
    })
}

async fn read(
    txn: &DatabaseTransaction,
    machine: Machine,
    at: Option<DateTime<Utc>>,
) -> Result<Explanation, DbErr> {
    let Machine { id, row } = machine;
    let meter = billing_meters::Entity::find_by_id(Id(id)).one(txn).await?;
    let charge = match last_charge(txn, id, at.unwrap_or(DateTime::<Utc>::MAX_UTC)).await? {
        // A charge that ended before does not say what happened then.
        Some(charge) if at.is_none_or(|at| at < end(&charge)) => Some(take_apart(txn, charge).await?),
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
        Some(row) => plan(txn, &row.plan_id).await?,
        None => None,
    };
    Ok(Explanation {
        instance: id,
        label: row
            .as_ref()
            .map(|row| row.label.clone())
            .or_else(|| holds.first().map(|hold| hold.label.clone())),
        deleted: row.is_none(),
        billed_through: meter.map(|meter| meter.billed_through.0),
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

async fn take_apart(txn: &DatabaseTransaction, charge: billing_charges::Model) -> Result<Charge, DbErr> {
    let Instant(start) = charge.period_start;
    let before = last_charge(txn, charge.instance_id.0, start - TimeDelta::microseconds(1)).await?;
    let carry_before = before.map_or(0, |before| before.carry);
    let owed = i128::from(carry_before) + i128::from(charge.rate) * i128::from(charge.hours);
    let taken = i128::from(charge.amount) * 73_000 + i128::from(charge.carry);
    let ledger = match charge.payment_transaction_id {
        Some(id) => payment_transactions::Entity::find_by_id(id).one(txn).await?,
        None => None,
    };
    let cycles = vps_billing_cycles::Entity::find()
        .filter(vps_billing_cycles::Column::VpsInstanceId.eq(charge.instance_id))
        .filter(vps_billing_cycles::Column::BillingPeriodStart.gte(start - TimeDelta::milliseconds(1)))
        .filter(vps_billing_cycles::Column::BillingPeriodStart.lte(start + TimeDelta::milliseconds(1)))
        .all(txn)
        .await?;
    let cycle = cycles.into_iter().find(|cycle| cycle.status.as_deref() == Some("billed"));
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
        ledger: ledger.map(|row| {
            let metadata = row.metadata.unwrap_or_default();
            let balance =
                |key: &str| metadata.get(key).map(|value| value.to_string().trim_matches('"').to_owned());
            Ledger {
                id: row.id.0,
                description: row.description,
                balance_before: balance("balance_before"),
                balance_after: balance("balance_after"),
            }
        }),
        cycle: cycle.map(|cycle| Cycle {
            id: cycle.id.0,
            status: cycle.status.unwrap_or_default(),
            metadata: cycle.metadata.unwrap_or_default(),
        }),
        batch: batch(txn, charge.batch_id).await?,
    })
}

async fn batch(txn: &DatabaseTransaction, id: i64) -> Result<Option<Batch>, DbErr> {
    let Some(batch) = billing_batches::Entity::find_by_id(id).one(txn).await? else { return Ok(None) };
    let run = billing_job_runs::Entity::find_by_id(batch.run_id).one(txn).await?;
    Ok(Some(Batch {
        id,
        created_at: batch.created_at.0,
        as_of: batch.as_of.0,
        fence: batch.fence,
        run: batch.run_id.0,
        scheduled_at: run.as_ref().map(|run| run.scheduled_at.0),
        daemon: run.as_ref().map(|run| run.daemon.clone()),
        trigger: run.map(|run| run.triggered_by),
    }))
}

async fn plan(txn: &DatabaseTransaction, plan_id: &str) -> Result<Option<PlanNow>, DbErr> {
    use vps_plans::{Column, Entity};
    let by_name = Entity::find().filter(Column::ProviderPlanId.eq(plan_id)).one(txn).await?;
    let plan = match (plan_id.parse::<Uuid>(), by_name) {
        (_, Some(plan)) => Some(plan),
        (Ok(id), None) => Entity::find().filter(Column::Id.eq(Id(id))).one(txn).await?,
        (Err(_), None) => None,
    };
    Ok(plan.map(|plan| {
        let monthly = plan.base_price.map(|base| base.0 + plan.markup_price.map_or(0, |markup| markup.0));
        PlanNow { name: plan.name, monthly: monthly.map(|monthly| Money(monthly).to_string()) }
    }))
}

fn shown(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// What is carried, as a share of the currency.
fn carried(carry: i64) -> String {
    Rate(Carry(carry).0).per_hour(8)
}

/// The explanation in lines for a terminal.
#[must_use]
pub fn in_words(explanation: &Explanation) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    let label = explanation.label.as_deref().map_or_else(String::new, |label| format!(" ({label})"));
    let deleted = if explanation.deleted { ", deleted" } else { "" };
    rows.push(("machine", format!("{}{label}{deleted}", explanation.instance)));
    if let Some(plan) = &explanation.plan {
        let price =
            plan.monthly.as_ref().map_or("no price".to_owned(), |monthly| format!("{monthly} a month"));
        rows.push(("plan now", format!("{}, {price}", plan.name)));
    }
    if let Some(through) = explanation.billed_through {
        rows.push(("paid up to", shown(through)));
    }
    if let Some(charge) = &explanation.charge {
        of_charge(charge, &mut rows);
    }
    if let Some(hold) = &explanation.hold {
        let detail = hold.detail.as_deref().unwrap_or_default();
        rows.push(("held", format!("{}: {detail}", hold.reason)));
        let currency = hold.currency.as_deref().map_or_else(String::new, |currency| format!(" {currency}"));
        let amount =
            hold.amount_due.as_ref().map_or("an unknown amount".to_owned(), |due| format!("{due}{currency}"));
        let hours = hold.hours_due.map_or("an unknown number of".to_owned(), |hours| hours.to_string());
        rows.push(("  owed", format!("{amount} for {hours} hours")));
        rows.push(("  by", hold.organization.to_string()));
        rows.push(("  since", format!("{}, last seen {}", shown(hold.opened_at), shown(hold.seen_at))));
        if let Some(closed) = hold.closed_at {
            let uncharged = hold.closed_reason.as_ref();
            let uncharged =
                uncharged.map_or_else(String::new, |reason| format!(", closed without a charge: {reason}"));
            rows.push(("  until", format!("{}{uncharged}", shown(closed))));
        }
    }
    rows.iter().map(|(word, text)| format!("{word:12}{text}\n")).collect::<Vec<_>>().concat()
}

fn of_charge(charge: &Charge, rows: &mut Vec<(&str, String)>) {
    let whose = if charge.by_panel { " by the panel's own biller" } else { "" };
    rows.push((
        "charged",
        format!("{} {} for {} hours{whose}", charge.amount, charge.currency, charge.hours),
    ));
    rows.push(("  paid by", charge.organization.to_string()));
    rows.push(("  from", shown(charge.period_start)));
    rows.push(("  to", shown(charge.period_end)));
    rows.push((
        "  an hour",
        format!("{} ({} a month of 730 hours, backups included)", charge.hourly_price, monthly(charge.rate)),
    ));
    rows.push((
        "  carried",
        format!("{} before, {} after", carried(charge.carry_before), carried(charge.carry_after)),
    ));
    let verdict = if charge.adds_up { "exactly" } else { "NOT: run `billing-daemon audit`" };
    rows.push((
        "  adds up",
        format!("{verdict} (carried before + hours at the price = charged + carried after)"),
    ));
    if let Some(ledger) = &charge.ledger {
        let balance = |balance: &Option<String>| balance.clone().unwrap_or_else(|| "?".to_owned());
        rows.push((
            "  wallet",
            format!("{} before, {} after", balance(&ledger.balance_before), balance(&ledger.balance_after)),
        ));
        rows.push((
            "  ledger",
            format!("{} `{}`", ledger.id, ledger.description.as_deref().unwrap_or_default()),
        ));
    }
    let cycle = charge.cycle.as_ref().map_or("none".to_owned(), |cycle| cycle.id.to_string());
    rows.push(("  cycle", cycle));
    if let Some(batch) = &charge.batch {
        rows.push(("  batch", format!("{} at {}, fence {}", batch.id, shown(batch.created_at), batch.fence)));
        rows.push(("  run", batch.run.to_string()));
        if let (Some(daemon), Some(scheduled)) = (&batch.daemon, batch.scheduled_at) {
            let trigger = batch.trigger.as_deref().unwrap_or_default();
            rows.push(("", format!("by {daemon} ({trigger}), for {}", shown(scheduled))));
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
