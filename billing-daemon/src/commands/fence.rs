//! `fence`: the trigger that holds the panel's own biller back while ours works.

use std::time::Duration;

use billing_jobs::fence::{self, FenceError, FenceStatus, Installed};
use sea_orm::DatabaseConnection;
use serde_json::json;

use super::{database, environment, log, quiet_filter, say};
use crate::{
    Plugins,
    cli::{Common, Fence},
    exit::{Exit, Failure},
    identity::whoever_is_here,
    logging::LogOutput,
    runtime::{self, Opened},
};

pub(super) async fn execute(common: &Common, plugins: &Plugins, action: Fence) -> Result<(), Failure> {
    let environment = environment(common)?;
    let database = database(common, plugins, &environment)?;
    log(common, LogOutput::Stderr, &quiet_filter(&environment), Some(&database))?;
    let Opened { db, .. } = runtime::open(&database).await?;
    match action {
        Fence::Install { after } => install(&db, after).await,
        Fence::Remove => {
            let was_there = fence::remove(&db, &whoever_is_here())
                .await
                .map_err(|error| failed("remove the fence", error))?;
            say(if was_there { "the fence is removed" } else { "there is no fence: nothing to do" });
            Ok(())
        }
        Fence::Status { json } => status(&db, json).await,
    }
}

async fn install(db: &DatabaseConnection, after: Duration) -> Result<(), Failure> {
    let Installed { before, changed, owner, by_owner } = fence::install(db, after, &whoever_is_here())
        .await
        .map_err(|error| failed("install the fence", error))?;
    let done = match (before.installed, changed) {
        (false, _) => "the fence is installed",
        (true, true) => "the fence is brought up to date",
        (true, false) => "the fence is installed already: nothing to do",
    };
    say(format!(
        "{done}\nthe panel's hourly debits are refused while billing works, and charged into the same ledger once it has not \
         worked for {}",
        humantime::format_duration(after)
    ));
    say(login_advice(&owner, by_owner));
    Ok(())
}

/// What a separate login for the daemon adds.
fn login_advice(owner: &str, by_owner: bool) -> String {
    if by_owner {
        format!(
            "this login, {owner}, owns the panel's tables, so a daemon with it could also drop the fence or rewrite the \
             ledger; a login of its own, with the rights that the README lists, could not"
        )
    } else {
        format!(
            "the fence acts with the rights of {owner}; a daemon whose login is not {owner} cannot drop it"
        )
    }
}

async fn status(db: &DatabaseConnection, json: bool) -> Result<(), Failure> {
    if db.get_database_backend() == sea_orm::DbBackend::Sqlite {
        return Err(failed("look at the fence", FenceError::NotPostgres));
    }
    let status = fence::status(db).await.map_err(|error| Failure::database("look at the fence", &error))?;
    if json {
        say(json!({
            "installed": status.installed,
            "enabled": status.enabled,
            "effective": status.effective,
            "after_seconds": status.after.map(|after| after.as_secs()),
            "outdated": status.outdated,
        }));
    } else {
        say(in_words(status));
    }
    if status.effective { Ok(()) } else { Err(Failure::silent(Exit::Negative)) }
}

/// One sentence on how the fence stands, and what to do about it.
pub(crate) fn in_words(status: FenceStatus) -> String {
    let after = status.after.map(|after| humantime::format_duration(after).to_string());
    let after = after.unwrap_or_else(|| "an unknown time".to_owned());
    match status {
        FenceStatus { installed: false, .. } => {
            "the fence is off: `billing-daemon fence install` puts it up".to_owned()
        }
        FenceStatus { enabled: false, .. } => {
            "the fence is there but disabled: `billing-daemon fence install` puts it up again".to_owned()
        }
        FenceStatus { effective: false, .. } => {
            "the fence is not the one of this version, so nothing may rely on it: run `billing-daemon fence install`"
                .to_owned()
        }
        FenceStatus { outdated: true, .. } => format!(
            "the fence is on (the panel may bill after {after} of silence), but not as this program would install it: \
             run `billing-daemon fence install`"
        ),
        _ => format!("the fence is on (the panel may bill after {after} of silence)"),
    }
}

fn failed(doing: &str, error: FenceError) -> Failure {
    match error {
        FenceError::Database(error) => Failure::database(doing, &error),
        FenceError::NotOwner { .. } | FenceError::Rights { .. } => Failure::new(Exit::Permission, error),
        FenceError::NotPostgres | FenceError::NoTables => Failure::new(Exit::Configuration, error),
    }
}
