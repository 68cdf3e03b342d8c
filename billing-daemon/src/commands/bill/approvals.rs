//! The approvals of `bill`: of a catch-up, or of a spike.

use billing_jobs::{
    billing::{Biller, Excess, Scope, approve_catch_up, spike_guard},
    currency::Currency,
    money::{Money, NoAmount},
};
use chrono::{DateTime, Utc};
use sea_orm::DatabaseConnection;
use uuid::Uuid;

use super::{BillArgs, manual_run::billing_failure};
use crate::{
    exit::{Exit, Failure},
    subjects,
};

/// Returns the instances whose catch-up the command line approves, if any.
pub(super) async fn scope(db: &DatabaseConnection, options: &BillArgs) -> Result<Option<Scope>, Failure> {
    let Some(names) = &options.approve_catch_up else { return Ok(None) };
    if names.is_empty() != options.all {
        let message = "name the instances or organizations after `--approve-catch-up`, or add `--all`";
        return Err(Failure::new(Exit::Usage, message));
    }
    let scope = subjects::resolve(db, names).await?;
    Ok(Some(Scope { all: options.all, max_hours: options.hours.map(i64::from), ..scope }))
}

/// Records the approval of `scope`; returns the end of the approval.
pub(super) async fn record(
    db: &DatabaseConnection,
    scope: &Scope,
    options: &BillArgs,
) -> Result<DateTime<Utc>, Failure> {
    let recorded = approve_catch_up(db, scope, &options.author.name(), options.reason.as_deref()).await;
    recorded.map_err(|error| Failure::database("record the approval", &error))
}

/// Approves spikes. `--approve` has amounts that a run has announced or would announce now, each followed by its currency where
/// several wait.
pub(super) async fn approve_spike(
    db: &DatabaseConnection,
    biller: &Biller,
    options: &BillArgs,
) -> Result<(), Failure> {
    let (words, by) = (&options.approve, options.author.name());
    let failed = |error| Failure::database("approve the announced amount", &error);
    let is_currency = |word: &String| word.parse::<Currency>().is_ok();
    // A currency belongs to the amount before it.
    let all_of = |excesses: &[Excess]| -> Result<Vec<Excess>, String> {
        words.chunk_by(|_, next| is_currency(next)).map(|words| chosen(excesses, words)).collect()
    };
    let mut announced = spike_guard::pending_spike(db).await.map_err(failed)?;
    if announced.as_ref().is_none_or(|announced| all_of(&announced.excesses).is_err()) {
        let spike = biller.spike(None).await.map_err(billing_failure)?;
        if let Some(spike) = spike.filter(|spike| all_of(&spike.excesses).is_ok()) {
            spike_guard::record_pending_spike(db, &by, &spike).await.map_err(failed)?;
            announced = spike_guard::pending_spike(db).await.map_err(failed)?;
        }
    }
    let Some(announced) = announced else {
        return Err(Failure::new(Exit::Usage, "no run waits for an approval: omit `--approve`"));
    };
    for excess in all_of(&announced.excesses).map_err(|message| Failure::new(Exit::Usage, message))? {
        spike_guard::approve_once(db, announced.id, excess, &by, options.reason.as_deref(), Uuid::now_v7())
            .await
            .map_err(failed)?;
    }
    Ok(())
}

/// Returns the excess that `words` name, an amount and optionally a currency; or a message with the correct words.
fn chosen(excesses: &[Excess], words: &[String]) -> Result<Excess, String> {
    let (amount, currency) = match words {
        [amount] => (amount, None),
        [amount, currency] => {
            (amount, Some(currency.parse::<Currency>().map_err(|error| error.to_string())?))
        }
        _ => return Err("`--approve` takes an amount and a currency".to_owned()),
    };
    let amount: Money = amount.parse().map_err(|error: NoAmount| error.to_string())?;
    let named = |excess: &&Excess| currency.is_none_or(|currency| currency == excess.currency);
    let each =
        |text: fn(&Excess) -> String, between| excesses.iter().map(text).collect::<Vec<_>>().join(between);
    let waiting = || each(ToString::to_string, " and ");
    let instead = || each(|excess| format!("--approve {} {}", excess.due.amount, excess.currency), " ");
    let mut matching = excesses.iter().filter(named);
    match (matching.next(), matching.next()) {
        (Some(excess), None) if excess.due.amount == amount => Ok(*excess),
        (Some(_), Some(_)) => Err(format!(
            "several currencies wait for an approval ({}): name the currency, `{}`",
            waiting(),
            instead()
        )),
        (Some(_) | None, _) => {
            let currency = currency.map_or_else(String::new, |currency| format!(" {currency}"));
            Err(format!(
                "{} waits for an approval, not {amount}{currency}: check it with `bill --dry-run`, then use `{}`",
                waiting(),
                instead()
            ))
        }
    }
}
