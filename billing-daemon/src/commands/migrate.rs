//! `migrate`: the schema, up, down, and how it stands.

use billing_store::audit_log::{self, AuditEvent};
use clap::Subcommand;
use sea_orm::DatabaseConnection;
use serde_json::json;

use super::session::Session;
use crate::{
    exit::{Exit, Failure},
    host::identity::operator_name,
    output::line as say,
};
use billing_store::Pool;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum MigrateCommand {
    /// Apply every pending migration
    #[command(after_help = "Example:\n  billing-daemon migrate up")]
    Up,
    /// Drop what `migrate up` created, with every charge; other tables stay
    #[command(after_help = "Example:\n  billing-daemon migrate down --yes")]
    Down {
        /// Confirm the deletion
        #[arg(long)]
        yes: bool,
    },
    /// List the migrations, applied and pending
    #[command(after_help = "Example:\n  billing-daemon migrate status")]
    Status,
}

pub(super) async fn execute(session: &Session<'_>, action: MigrateCommand) -> Result<(), Failure> {
    let mut database = session.database()?;
    if action == MigrateCommand::Up {
        database = database.creating();
    }
    if action == (MigrateCommand::Down { yes: false }) {
        let message = "this deletes the record of every charge, meter and hold, and those of the panel's tables that `migrate up` \
                       created, with their rows (tables that existed before stay): say `billing-daemon migrate down --yes` if \
                       you mean it";
        return Err(Failure::new(Exit::Usage, message));
    }
    let db = database.connect(Pool::Single).await?;
    match action {
        MigrateCommand::Up => {
            let applied = migration::up(&db, None).await?;
            if !applied.is_empty() {
                on_record(&db, &applied).await?;
            }
            report("applied", &applied);
        }
        MigrateCommand::Down { .. } => report("reverted", &migration::down(&db, None).await?),
        MigrateCommand::Status => {
            for (name, applied) in migration::status(&db).await? {
                say(format!("{}  {name}", if applied { "applied" } else { "pending" }));
            }
        }
    }
    db.close().await.map_err(|error| Failure::database("close the database", &error))
}

async fn on_record(db: &DatabaseConnection, applied: &[String]) -> Result<(), Failure> {
    let entry = AuditEvent {
        by: operator_name(),
        action: "migrate up",
        job: String::new(),
        reason: None,
        details: json!({ "after": { "applied": applied } }),
    };
    audit_log::append_in_own_transaction(db, &entry)
        .await
        .map_err(|error| Failure::database("put it on record", &error))
}

fn report(what: &str, names: &[String]) {
    if names.is_empty() {
        say("nothing to do");
    }
    for name in names {
        say(format!("{what}  {name}"));
    }
}
