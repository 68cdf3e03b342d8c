//! Rows of the database as what the decision needs.

use sea_orm::{DbErr, QueryResult};

use super::decide::{Instance, Meter, Totals, Wallet};
use crate::{
    money::{Carry, Money, Rate},
    period::Rates,
    price::{BackupPrices, Plan},
};

pub(super) fn plan(row: &QueryResult, backups: bool) -> Result<Plan, DbErr> {
    Ok(Plan {
        id: row.try_get("", "id")?,
        provider_plan_id: row.try_get("", "provider_plan_id")?,
        base_price: row.try_get("", "base")?,
        markup_price: row.try_get("", "markup")?,
        backups: backups
            .then(|| {
                Ok::<_, DbErr>(BackupPrices {
                    price: row.try_get("", "backup")?,
                    upcharge: row.try_get("", "upcharge")?,
                })
            })
            .transpose()?,
    })
}

pub(super) fn wallet(row: &QueryResult) -> Result<Wallet, DbErr> {
    Ok(Wallet {
        id: row.try_get("", "id")?,
        organization: row.try_get("", "organization")?,
        balance: row.try_get::<Option<i64>>("", "balance")?.map(Money),
        currency: row.try_get("", "currency")?,
        opened: row.try_get("", "opened")?,
    })
}

pub(super) fn instance(row: &QueryResult) -> Result<Instance, DbErr> {
    Ok(Instance {
        id: row.try_get("", "id")?,
        organization: row.try_get("", "organization")?,
        label: row.try_get("", "label")?,
        plan: row.try_get("", "plan")?,
        backup_frequency: row.try_get("", "backup_frequency")?,
        last_billed_at: row.try_get("", "last_billed_at")?,
        created_at: row.try_get("", "created_at")?,
        invalid_time: row.try_get("", "invalid_time")?,
        gone: row.try_get("", "gone")?,
        meter: meter(row)?,
        held: row.try_get("", "held")?,
    })
}

fn meter(row: &QueryResult) -> Result<Option<Meter>, DbErr> {
    let Some(billed_through) = row.try_get("", "billed_through")? else { return Ok(None) };
    let changes: Option<String> = row.try_get("", "rate_changes")?;
    let changes = changes.map(|text| serde_json::from_str(&text)).transpose();
    let changes = changes.map_err(|error| DbErr::Type(format!("billing_meters.rate_changes: {error}")))?;
    let first: Option<i64> = row.try_get("", "rate")?;
    Ok(Some(Meter {
        billed_through,
        carry: Carry(row.try_get("", "carry")?),
        rates: first.map(|first| Rates { first: Rate(first), changes: changes.unwrap_or_default() }),
        seen_at: row.try_get("", "seen_at")?,
        panel_debited_at: row.try_get("", "panel_debited_at")?,
    }))
}

pub(super) fn totals(row: &QueryResult) -> Result<Totals, DbErr> {
    let count = |column| row.try_get::<i64>("", column).map(i64::unsigned_abs);
    Ok(Totals {
        charged: count("charged")?,
        charges: count("charges")?,
        held: count("held")?,
        hours: count("hours")?,
        amount: Money(row.try_get("", "amount")?),
    })
}
