//! A database that is open, has the schema of this program, and belongs to a panel of a known generation.

use std::path::PathBuf;

use billing_jobs::{panel::Panel, restore_detection::CommitMarker};
use billing_store::{Database, Pool, with_retry};
use migration::SchemaError;
use sea_orm::{DatabaseConnection, DbErr};

use crate::{config::DaemonSettings, exit::Failure};

/// Everything that billing works with, opened and checked. Nothing was written yet.
#[derive(Clone, Debug)]
pub struct PanelDatabase {
    /// The panel's database.
    pub db: DatabaseConnection,
    /// Which schema it has.
    pub panel: Panel,
}

/// Opens `database`, and refuses a schema that does not fit this program.
pub async fn open(database: &Database) -> Result<PanelDatabase, Failure> {
    let db = database.connect_with_retry(Pool::Shared).await?;
    with_retry(async || migration::check(&db).await, of_database).await?;
    let panel = with_retry(async || Panel::detect(&db).await, |error| Some(error)).await;
    with_panel(db, panel)
}

/// Opens `database` without retries, for a command that reports its current state.
pub async fn open_without_retry(database: &Database) -> Result<PanelDatabase, Failure> {
    let db = database.connect(Pool::Shared).await?;
    migration::check(&db).await?;
    let panel = Panel::detect(&db).await;
    with_panel(db, panel)
}

fn with_panel(db: DatabaseConnection, panel: Result<Panel, DbErr>) -> Result<PanelDatabase, Failure> {
    let panel = panel.map_err(|error| Failure::database("read the panel's schema", &error))?;
    Ok(PanelDatabase { db, panel })
}

fn of_database(error: &SchemaError) -> Option<&DbErr> {
    match error {
        SchemaError::Database(error) => Some(error),
        SchemaError::Missing { .. } | SchemaError::Older { .. } | SchemaError::Newer { .. } => None,
    }
}

/// The file in which this host records its last commit: in `state-dir`, or in the folder that systemd gives a service.
#[must_use]
pub fn last_commit(settings: &DaemonSettings, database: &Database) -> Option<CommitMarker> {
    let of_service =
        || std::env::var_os("STATE_DIRECTORY").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folder = settings.state_dir.clone().or_else(of_service)?;
    Some(CommitMarker::new(&folder, database.url().to_string()))
}
