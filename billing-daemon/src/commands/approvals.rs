//! What `bill` is told to charge beyond its limits: a catch-up, or a spike.

use billing_jobs::{
    billing::{Biller, Scope, approve_catch_up, brake},
    money::Money,
};
use chrono::{DateTime, Utc};
use sea_orm::DatabaseConnection;

use crate::{
    cli,
    exit::{Exit, Failure},
    identity::whoever_is_here,
    subjects,
};

/// The instances whose catch-up the command line approves, if it approves any.
pub(super) async fn scope(db: &DatabaseConnection, options: &cli::Bill) -> Result<Option<Scope>, Failure> {
    let Some(names) = &options.approve_catch_up else { return Ok(None) };
    if names.is_empty() != options.all {
        let message =
            "name the instances or organizations after `--approve-catch-up`, or add `--all` instead";
        return Err(Failure::new(Exit::Usage, message));
    }
    let scope = subjects::resolve(db, names).await?;
    Ok(Some(Scope { all: options.all, max_hours: options.hours.map(i64::from), ..scope }))
}

/// Records the approval of `scope`; returns when it ends.
pub(super) async fn record(
    db: &DatabaseConnection,
    scope: &Scope,
    reason: Option<&str>,
) -> Result<DateTime<Utc>, Failure> {
    let recorded = approve_catch_up(db, scope, &whoever_is_here(), reason).await;
    recorded.map_err(|error| Failure::database("record the approval", &error))
}

/// Approves a spike of `amount`: the one that a run announced, or the one that a run would announce now.
pub(super) async fn approve_spike(
    db: &DatabaseConnection,
    biller: &Biller,
    amount: Money,
) -> Result<(), Failure> {
    let failed = |error| Failure::database("approve what was announced", &error);
    let mut announced = brake::announced(db).await.map_err(failed)?;
    if announced.is_none_or(|announced| announced.sum.amount != amount) {
        let spike = biller.spike(None).await.map_err(super::bill::failed)?;
        if let Some(spike) = spike.filter(|spike| spike.sum.amount == amount) {
            brake::announce(db, &whoever_is_here(), spike).await.map_err(failed)?;
            announced = brake::announced(db).await.map_err(failed)?;
        }
    }
    let Some(announced) = announced else {
        return Err(Failure::new(Exit::Usage, "no run waits for an approval: leave out `--approve`"));
    };
    if announced.sum.amount != amount {
        let message = format!(
            "what waits for an approval is {} for {} hours, not {amount}: check it with `bill --dry-run`, then use `--approve {}`",
            announced.sum.amount, announced.sum.hours, announced.sum.amount
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    brake::approve(db, announced, &whoever_is_here()).await.map_err(failed)
}
