//! A database that is open, has the schema of this program, and belongs to a panel of a known generation.

use std::sync::Arc;

use billing_jobs::{panel::Panel, restore_detection::RestoreDetection};
use billing_store::{Database, DedicatedConnection, Pool, read_time, with_retry};
use chrono::{DateTime, Utc};
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

impl PanelDatabase {
    /// Returns the time by the database's clock, which every daemon follows.
    pub(crate) async fn now(&self) -> Result<DateTime<Utc>, DbErr> {
        read_time(&self.db).await
    }
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

/// What the process `found_by` knows of the newest batch of `database`, which it reads over `connection`. Its note is in `state-dir`, or in the folder that systemd gives a
/// service.
#[must_use]
pub fn restore_detection(
    settings: &DaemonSettings,
    database: &Database,
    connection: impl Into<DedicatedConnection>,
    found_by: &str,
) -> Arc<RestoreDetection> {
    let mut restores = RestoreDetection::new(connection, found_by);
    if let Some(folder) = settings.state_folder() {
        restores = restores.with_folder(&folder, database.url().to_string());
    }
    if let Some(file) = database.url().file() {
        restores = restores.with_database_file(file);
    }
    Arc::new(restores)
}
