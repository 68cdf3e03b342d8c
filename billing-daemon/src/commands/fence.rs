//! `fence`: the trigger that holds the panel's own biller back while ours works.

use billing_jobs::fence::{self, FenceError, FenceStatus, Installed};
use sea_orm::DatabaseConnection;
use serde_json::json;

use super::{database, environment, log, quiet_filter};
use crate::{
    Plugins,
    cli::{Common, Fence},
    exit::{Exit, Failure},
    identity::whoever_is_here,
    logging::LogOutput,
    output::{json as say_json, line as say},
    runtime::{self, Opened},
};

pub(super) async fn execute(common: &Common, plugins: &Plugins, action: Fence) -> Result<(), Failure> {
    let environment = environment(common)?;
    let database = database(common, plugins, &environment)?;
    log(common, LogOutput::Stderr, &quiet_filter(&environment), Some(&database))?;
    let Opened { db, .. } = runtime::open(&database).await?;
    match action {
        Fence::Install => install(&db).await,
        Fence::Remove { force } => {
            let was_there = fence::remove(&db, &whoever_is_here(), force)
                .await
                .map_err(|error| failed("remove the fence", error))?;
            say(if was_there { "the fence is removed" } else { "there is no fence: nothing to do" });
            Ok(())
        }
        Fence::Status { json } => status(&db, json).await,
    }
}

async fn install(db: &DatabaseConnection) -> Result<(), Failure> {
    let Installed { before, changed, owner, by_owner } =
        fence::install(db, &whoever_is_here()).await.map_err(|error| failed("install the fence", error))?;
    let done = match (before.installed, changed) {
        (false, _) => "the fence is installed",
        (true, true) => "the fence is brought up to date",
        (true, false) => "the fence is installed already: nothing to do",
    };
    say(done);
    say(
        "the panel's hourly debits are refused while billing works, and charged into the same ledger once it has not \
         worked for `hand-back-after` (jobs.toml; 75 minutes unless it is set)",
    );
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
        say_json(&json!({
            "installed": status.installed,
            "enabled": status.enabled,
            "effective": status.effective,
            "outdated": status.outdated,
        }));
    } else {
        say(in_words(status));
    }
    if status.effective { Ok(()) } else { Err(Failure::silent(Exit::Negative)) }
}

/// One sentence on the state of the fence, and what to do about it.
pub(crate) fn in_words(status: FenceStatus) -> &'static str {
    match status {
        FenceStatus { installed: false, .. } => "the fence is off: `billing-daemon fence install` puts it up",
        FenceStatus { enabled: false, .. } => {
            "the fence is there but disabled: `billing-daemon fence install` puts it up again"
        }
        FenceStatus { effective: false, .. } => {
            "the fence is not the one of this version, so billing cannot rely on it: run `billing-daemon fence install`"
        }
        FenceStatus { outdated: true, .. } => {
            "the fence is on, but not as this program would install it: run `billing-daemon fence install`"
        }
        _ => "the fence is on",
    }
}

fn failed(doing: &str, error: FenceError) -> Failure {
    match error {
        FenceError::Database(error) => Failure::database(doing, &error),
        FenceError::NotOwner { .. } | FenceError::Rights { .. } => Failure::new(Exit::Permission, error),
        FenceError::Billing { .. } => Failure::new(Exit::TryAgain, error),
        FenceError::NotPostgres | FenceError::NoTables => Failure::new(Exit::Configuration, error),
    }
}
