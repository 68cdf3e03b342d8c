//! The panel's own billing: one pass over everything that is due, while no daemon bills.

use std::time::Duration;

use billing_entities::{
    Id, Money, payment_transactions, vps_billing_cycles, vps_instances, vps_plans, wallets,
};
use billing_jobs::may_bill;
use billing_store::Transaction;
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseConnection, DbErr, EntityTrait, IntoActiveModel,
    QueryFilter, prelude::Uuid,
};

/// The result of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// A daemon is alive and bills.
    Paused,
    /// The panel charged this number of hours.
    Billed(i64),
}

/// Bills everything that was due at `now`, unless a daemon wrote a heartbeat within `takeover_after`.
pub(crate) async fn pass(
    db: &DatabaseConnection,
    takeover_after: Duration,
    now: DateTime<Utc>,
) -> Result<Pass, DbErr> {
    if !may_bill(db, takeover_after).await {
        return Ok(Pass::Paused);
    }
    let mut hours = 0;
    for instance in vps_instances::Entity::find().all(db).await? {
        // On SQLite no other connection writes until the transaction ends, so what it reads stays valid.
        let txn = billing_store::begin(db).await?;
        if let Some(charge) = due(&txn, instance.id, now).await? {
            hours += charge.hours;
            write(&txn, charge).await?;
        }
        txn.commit().await?;
    }
    Ok(Pass::Billed(hours))
}

/// Whole hours of one instance that its wallet covers.
struct Charge {
    instance: vps_instances::Model,
    wallet: wallets::Model,
    balance: i64,
    start: DateTime<Utc>,
    hours: i64,
    amount: i64,
}

async fn due(txn: &Transaction, id: Id, now: DateTime<Utc>) -> Result<Option<Charge>, DbErr> {
    // The list may be old: another process may have charged or deleted the instance since.
    let Some(instance) = vps_instances::Entity::find_by_id(id).one(txn).await? else { return Ok(None) };
    let Some(start) = instance.last_billed_at.or(instance.created_at) else { return Ok(None) };
    let Ok(plan) = instance.plan_id.parse().map(Id) else { return Ok(None) };
    let plan = vps_plans::Entity::find_by_id(plan).one(txn).await?;
    let price = plan.and_then(|plan| Some(plan.base_price?.0 + plan.markup_price?.0));
    let owner = wallets::Column::OrganizationId.eq(instance.organization_id);
    let wallet = wallets::Entity::find().filter(owner).one(txn).await?;
    let (Some(price), Some(wallet)) = (price, wallet) else { return Ok(None) };
    let hours = (now - start).num_hours();
    let balance = wallet.balance.map_or(0, |balance| balance.0);
    // Rounded down without a carry, as a panel does it. The daemon's amounts are exact.
    let amount = price * hours / 730;
    let charge = Charge { instance, wallet, balance, start, hours, amount };
    Ok(Some(charge).filter(|charge| charge.hours > 0 && charge.amount <= charge.balance))
}

/// Writes the debit, its cycle and the end of the billed period in the caller's transaction.
async fn write(txn: &Transaction, charge: Charge) -> Result<(), DbErr> {
    let Charge { instance, wallet, balance, start, hours, amount } = charge;
    let end = start + TimeDelta::hours(hours);
    let mut wallet = wallet.into_active_model();
    wallet.balance = Set(Some(Money(balance - amount)));
    wallet.update(txn).await?;
    let debit = payment_transactions::ActiveModel {
        id: Set(Id(Uuid::new_v4())),
        organization_id: Set(instance.organization_id),
        amount: Set(Money(-amount)),
        payment_method: Set("wallet_debit".to_owned()),
        payment_provider: Set("internal".to_owned()),
        status: Set("completed".to_owned()),
        description: Set(Some(format!("VPS Hourly Billing - {} ({hours}h)", instance.label))),
        ..Default::default()
    };
    let debit = debit.insert(txn).await?;
    let cycle = vps_billing_cycles::ActiveModel {
        id: Set(Id(Uuid::new_v4())),
        vps_instance_id: Set(instance.id),
        organization_id: Set(instance.organization_id),
        billing_period_start: Set(start),
        billing_period_end: Set(end),
        hourly_rate: Set(Money(amount / hours)),
        total_amount: Set(Money(amount)),
        status: Set(Some("billed".to_owned())),
        payment_transaction_id: Set(Some(debit.id)),
        ..Default::default()
    };
    cycle.insert(txn).await?;
    let mut instance = instance.into_active_model();
    instance.last_billed_at = Set(Some(end));
    instance.update(txn).await?;
    Ok(())
}
