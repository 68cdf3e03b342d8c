//! The panel's own billing: one pass over everything that is due, whenever no daemon does it.

use std::time::Duration;

use billing_entities::{
    Id, Money, payment_transactions, vps_billing_cycles, vps_instances, vps_plans, wallets,
};
use billing_jobs::may_bill;
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseConnection, DatabaseTransaction, DbErr,
    EntityTrait, IntoActiveModel, QueryFilter, prelude::Uuid,
};

/// What a pass came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// A daemon lives, and bills.
    Paused,
    /// So many hours were charged by us.
    Billed(i64),
}

/// Bills everything that was due at `now`, unless a daemon has told within `patience` that it does.
pub(crate) async fn pass(
    db: &DatabaseConnection,
    patience: Duration,
    now: DateTime<Utc>,
) -> Result<Pass, DbErr> {
    if !may_bill(db, patience).await {
        return Ok(Pass::Paused);
    }
    let mut hours = 0;
    for machine in vps_instances::Entity::find().all(db).await? {
        // On SQLite nobody else writes until its end, so what is read in here stays so.
        let txn = billing_store::begin(db).await?;
        if let Some(charge) = due(&txn, machine.id, now).await? {
            hours += charge.hours;
            write(&txn, charge).await?;
        }
        txn.commit().await?;
    }
    Ok(Pass::Billed(hours))
}

/// Whole hours of one machine that its wallet covers.
struct Charge {
    machine: vps_instances::Model,
    wallet: wallets::Model,
    balance: i64,
    start: DateTime<Utc>,
    hours: i64,
    amount: i64,
}

async fn due(txn: &DatabaseTransaction, id: Id, now: DateTime<Utc>) -> Result<Option<Charge>, DbErr> {
    // The list may be old: somebody may have charged or deleted the machine since.
    let Some(machine) = vps_instances::Entity::find_by_id(id).one(txn).await? else { return Ok(None) };
    let Some(start) = machine.last_billed_at.or(machine.created_at) else { return Ok(None) };
    let Ok(plan) = machine.plan_id.parse().map(Id) else { return Ok(None) };
    let plan = vps_plans::Entity::find_by_id(plan).one(txn).await?;
    let price = plan.and_then(|plan| Some(plan.base_price?.0 + plan.markup_price?.0));
    let owner = wallets::Column::OrganizationId.eq(machine.organization_id);
    let wallet = wallets::Entity::find().filter(owner).one(txn).await?;
    let (Some(price), Some(wallet)) = (price, wallet) else { return Ok(None) };
    let hours = (now - start).num_hours();
    let balance = wallet.balance.map_or(0, |balance| balance.0);
    // Rounded down, as a panel does that keeps no rest: the daemon is the one that is exact.
    let amount = price * hours / 730;
    let charge = Charge { machine, wallet, balance, start, hours, amount };
    Ok(Some(charge).filter(|charge| charge.hours > 0 && charge.amount <= charge.balance))
}

/// The debit, its cycle and the mark of what is billed, all or nothing.
async fn write(txn: &DatabaseTransaction, charge: Charge) -> Result<(), DbErr> {
    let Charge { machine, wallet, balance, start, hours, amount } = charge;
    let end = start + TimeDelta::hours(hours);
    let mut wallet = wallet.into_active_model();
    wallet.balance = Set(Some(Money(balance - amount)));
    wallet.update(txn).await?;
    let debit = payment_transactions::ActiveModel {
        id: Set(Id(Uuid::new_v4())),
        organization_id: Set(machine.organization_id),
        amount: Set(Money(-amount)),
        payment_method: Set("wallet_debit".to_owned()),
        payment_provider: Set("internal".to_owned()),
        status: Set("completed".to_owned()),
        description: Set(Some(format!("VPS Hourly Billing - {} ({hours}h)", machine.label))),
        ..Default::default()
    };
    let debit = debit.insert(txn).await?;
    let cycle = vps_billing_cycles::ActiveModel {
        id: Set(Id(Uuid::new_v4())),
        vps_instance_id: Set(machine.id),
        organization_id: Set(machine.organization_id),
        billing_period_start: Set(start),
        billing_period_end: Set(end),
        hourly_rate: Set(Money(amount / hours)),
        total_amount: Set(Money(amount)),
        status: Set(Some("billed".to_owned())),
        payment_transaction_id: Set(Some(debit.id)),
        ..Default::default()
    };
    cycle.insert(txn).await?;
    let mut machine = machine.into_active_model();
    machine.last_billed_at = Set(Some(end));
    machine.update(txn).await?;
    Ok(())
}
