//! One file per command, and what they share.

mod accept_restore;
mod adopt;
mod args;
mod audit;
mod bill;
mod charges;
mod check;
pub(crate) mod cli;
mod completions;
#[cfg(feature = "console")]
mod console;
mod demo;
mod doctor;
pub(crate) mod guard;
mod handover;
mod healthcheck;
mod holds;
mod jobs;
mod man;
mod migrate;
mod prepaid;
mod release;
mod run;
mod runs;
mod schema;
mod service;
mod session;
mod status;
mod version;

use std::{
    io::{self, Write},
    time::Duration,
};

use billing_jobs::panel::Panel;
use billing_store::audit_log::{self, AuditEvent};
use sea_orm::DatabaseConnection;
use serde_json::Value;
use tracing::Level;

use self::{
    cli::{Cli, Command},
    session::Session,
};
pub use demo::PLANS;

use crate::{exit::Failure, output, plugins::Plugins, telemetry};

/// Runs the command of the command line.
pub(crate) async fn execute(cli: Cli, plugins: &Plugins) -> Result<(), Failure> {
    let common = &cli.common;
    let session = || Session::new(common, plugins);
    match cli.command {
        Command::Run(options) => run::execute(common, plugins, &options).await,
        Command::Service { action } => service::execute(action),
        Command::Doctor(options) => doctor::execute(common, plugins, &options).await,
        Command::Charges { action } => charges::execute(&session()?, action).await,
        #[cfg(feature = "console")]
        Command::Console { action } => console::execute(&action),
        Command::Healthcheck(options) => healthcheck::execute(&options),
        Command::Status(format) => status::execute(&session()?, format).await,
        Command::Jobs { action } => jobs::execute(common, plugins, &action).await,
        Command::Runs { action } => runs::execute(&session()?, &action).await,
        Command::Demo(demo) => demo::execute(&session()?, &demo).await,
        Command::Check { print_defaults } => check::execute(common, plugins, print_defaults),
        Command::Schema => {
            schema::execute(plugins);
            Ok(())
        }
        Command::Completions { shell } => {
            completions::execute(shell);
            Ok(())
        }
        Command::Version(format) => {
            version::execute(format);
            Ok(())
        }
        Command::Man { dir } => man::execute(dir.as_deref()),
        Command::Migrate { action } => migrate::execute(&session()?, action).await,
        Command::Bill(bill) => bill::execute(&session()?, &bill).await,
        Command::Holds { action } => holds::execute(&session()?, &action).await,
        Command::Wallets(options) => prepaid::wallets(&session()?, &options).await,
        Command::Standing { action } => prepaid::standing(&session()?, &action).await,
        Command::Policy { action } => prepaid::policy(&session()?, &action).await,
        Command::Events { action } => prepaid::events(&session()?, &action).await,
        Command::Webhook { action } => prepaid::webhook(&session()?, &action).await,
        Command::Prepaid { action } => prepaid::execute(&session()?, &action).await,
        Command::Adopt(options) => adopt::execute(&session()?, &options).await,
        Command::Release(format) => release::execute(&session()?, format).await,
        Command::Guard { action } => guard::execute(&session()?, action).await,
        Command::AcceptRestore(author) => accept_restore::execute(&session()?, &author).await,
        Command::Audit(format) => audit::execute(&session()?, format).await,
    }
}

/// Writes what the operator does to the audit log.
async fn append_to_audit_log(
    db: &DatabaseConnection,
    by: String,
    action: &'static str,
    (job, reason): (&str, Option<&str>),
    details: Value,
) -> Result<(), Failure> {
    let (job, reason) = (job.to_owned(), reason.map(str::to_owned));
    let event = AuditEvent { by, action, job, reason, details };
    let appended = audit_log::append_in_own_transaction(db, &event).await;
    appended.map_err(|error| Failure::database("write the audit log", &error))
}

/// Prints the content of a file, unchanged.
fn print(content: &[u8]) {
    let _ = io::stdout().lock().write_all(content);
}

/// Prints a message for the operator, and copies it to a daemon's log file.
pub(crate) fn complain(line: &str) {
    output::note(line);
    telemetry::copy_to_log_file(Level::ERROR, line);
}

/// Prints why a command failed and what helps; a daemon's log file gets the same lines.
pub(crate) fn print_error(failure: &Failure) {
    let text = failure.to_string();
    output::error(&text);
    text.lines().for_each(|line| telemetry::copy_to_log_file(Level::ERROR, line));
}

/// Prints a warning, and copies it to a daemon's log file.
fn warn_of(line: &str) {
    output::warning(line);
    telemetry::copy_to_log_file(Level::WARN, line);
}

/// The duration in seconds, rounded to milliseconds.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000.0).round() / 1_000.0
}

/// The name of the database system.
fn engine(panel: Panel) -> &'static str {
    match panel.backend {
        sea_orm::DbBackend::Sqlite => "SQLite",
        _ => "PostgreSQL",
    }
}
