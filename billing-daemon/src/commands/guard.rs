//! `guard`: the triggers that hold back the panel's built-in biller while this daemon bills.

use billing_jobs::panel_guard::{self, InstallReport, PanelGuardError};
use clap::Subcommand;
use sea_orm::DatabaseConnection;

use super::{args::JsonArgs, session::Session};
use crate::{
    exit::{Exit, Failure},
    host::identity::operator_name,
    output::{json as say_json, line as say, paragraph},
    status::PanelGuardView,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum GuardCommand {
    /// Install or update the panel guard; needs the login that owns the panel's tables
    #[command(after_help = "Example:\n  billing-daemon guard install")]
    Install,
    /// Remove the panel guard, and nothing else
    #[command(after_help = "Example:\n  billing-daemon guard remove")]
    Remove {
        /// Remove it even if a daemon is alive; that daemon may then stop billing
        #[arg(long)]
        force: bool,
    },
    /// Show the status of the panel guard; exit 1 if it is off
    #[command(after_help = "Example:\n  billing-daemon guard status --json")]
    Status(JsonArgs),
}

pub(super) async fn execute(session: &Session<'_>, action: GuardCommand) -> Result<(), Failure> {
    let db = session.panel().await?.db;
    match action {
        GuardCommand::Install => install(&db).await,
        GuardCommand::Remove { force } => {
            let was_installed = panel_guard::remove(&db, &operator_name(), force)
                .await
                .map_err(|error| failed("remove the panel guard", error))?;
            say(if was_installed {
                "the panel guard is removed"
            } else {
                "the panel guard is not installed: nothing to do"
            });
            Ok(())
        }
        GuardCommand::Status(format) => status(&db, format.json).await,
    }
}

async fn install(db: &DatabaseConnection) -> Result<(), Failure> {
    let InstallReport { before, changed, owner, by_owner } = panel_guard::install(db, &operator_name())
        .await
        .map_err(|error| failed("install the panel guard", error))?;
    let done = match (before.installed, changed) {
        (false, _) => "the panel guard is installed",
        (true, true) => "the panel guard is updated",
        (true, false) => "the panel guard is already installed: nothing to do",
    };
    say(done);
    paragraph(
        "while billing works, the hourly debits of the panel are rejected; when no run has succeeded for `hand-back-after` \
         (jobs.toml; 75 minutes by default), they are charged into the same ledger",
    );
    paragraph(&login_advice(&owner, by_owner));
    Ok(())
}

/// The advantage of a separate login for the daemon.
fn login_advice(owner: &str, by_owner: bool) -> String {
    if by_owner {
        format!(
            "the login {owner} owns the panel's tables, so a daemon with this login could drop the panel guard or rewrite the \
             ledger; use a separate login with the rights that docs/operate/roles.md lists"
        )
    } else {
        format!("the panel guard acts with the rights of {owner}; a daemon with another login cannot drop it")
    }
}

async fn status(db: &DatabaseConnection, json: bool) -> Result<(), Failure> {
    if db.get_database_backend() == sea_orm::DbBackend::Sqlite {
        return Err(failed("read the status of the panel guard", PanelGuardError::NotPostgres));
    }
    let status = panel_guard::status(db)
        .await
        .map_err(|error| Failure::database("read the status of the panel guard", &error))?;
    if json {
        say_json(&PanelGuardView::from(status));
    } else {
        say(status.to_string());
    }
    if status.effective { Ok(()) } else { Err(Failure::silent(Exit::Negative)) }
}

fn failed(doing: &str, error: PanelGuardError) -> Failure {
    match error {
        PanelGuardError::Database(error) => Failure::database(doing, &error),
        PanelGuardError::NotOwner { .. } | PanelGuardError::Rights { .. } => {
            Failure::new(Exit::Permission, error)
        }
        PanelGuardError::Billing { .. } => Failure::new(Exit::TryAgain, error),
        PanelGuardError::NotPostgres | PanelGuardError::NoTables => Failure::new(Exit::Configuration, error),
    }
}
