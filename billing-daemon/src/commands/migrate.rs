//! `migrate`: applies and reverts the migrations, and lists them.

use billing_store::Pool;
use clap::Subcommand;
use serde_json::json;

use super::{append_to_audit_log, session::Session};
use crate::{
    exit::{Exit, Failure},
    host::identity::operator_name,
    output::line as say,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum MigrateCommand {
    /// Apply every pending migration
    #[command(after_help = "Example:\n  billing-daemon migrate up")]
    Up,
    /// Drop what `migrate up` created, including every charge; keep all other tables
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
        let message = "this deletes every charge, meter and hold, and the tables of the panel that `migrate up` created; tables \
                       that existed before stay";
        return Err(
            Failure::new(Exit::Usage, message).help("run `billing-daemon migrate down --yes` to confirm")
        );
    }
    let db = database.connect(Pool::Single).await?;
    match action {
        MigrateCommand::Up => {
            let applied = migration::up(&db, None).await?;
            if !applied.is_empty() {
                let details = json!({ "after": { "applied": applied } });
                append_to_audit_log(&db, operator_name(), "migrate up", ("", None), details).await?;
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

fn report(what: &str, names: &[String]) {
    if names.is_empty() {
        say("nothing to do");
    }
    for name in names {
        say(format!("{what}  {name}"));
    }
}
