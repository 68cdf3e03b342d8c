//! A separate SQLite database, in a file, for each test.

use std::path::Path;

use sea_orm::DatabaseConnection;
use tempfile::TempDir;

use crate::{connect, migrate};

/// A database file, gone when this is dropped.
#[derive(Debug)]
pub struct Sqlite {
    folder: TempDir,
}

impl Sqlite {
    /// An empty database.
    #[must_use]
    pub fn database() -> Self {
        Self::database_in(&std::env::temp_dir())
    }

    fn database_in(place: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("billing-e2e-").tempdir_in(place);
        Self { folder: folder.expect("a folder for the database is made") }
    }

    /// A database with our migrations.
    pub async fn migrated() -> Self {
        Self::migrated_in(&std::env::temp_dir()).await
    }

    /// The same in this folder.
    pub async fn migrated_in(place: &Path) -> Self {
        let database = Self::database_in(place);
        migrate(&database.url()).await;
        database
    }

    /// Its URL. The file is made by the first that connects.
    #[must_use]
    pub fn url(&self) -> String {
        format!("sqlite://{}?mode=rwc", self.folder.path().join("billing.db").display())
    }

    /// A small pool of connections to it.
    pub async fn connect(&self) -> DatabaseConnection {
        connect(&self.url()).await
    }
}
