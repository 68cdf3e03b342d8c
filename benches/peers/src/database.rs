//! An empty database for one measurement.

use sea_orm::{ConnectionTrait as _, DatabaseConnection, Statement};
use tempfile::TempDir;

/// A database that exists until it is dropped.
pub(crate) struct TestDatabase {
    url: String,
    connection: DatabaseConnection,
    /// The name of the database, and the connection that drops it; `None` for a file.
    created: Option<(String, DatabaseConnection)>,
    /// The folder of the file.
    _folder: Option<TempDir>,
}

impl TestDatabase {
    /// Creates an empty database on the server at `server`, a URL of its administrator without the name of a database.
    pub(crate) async fn postgres(server: &str, name: &str) -> Self {
        let administrator = connect(&format!("{server}/postgres")).await;
        let name = name.replace('-', "_");
        for sql in [format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"), format!("CREATE DATABASE {name}")]
        {
            administrator.execute_unprepared(&sql).await.expect("the administrator may create databases");
        }
        let url = format!("{server}/{name}");
        let connection = connect(&url).await;
        Self { url, connection, created: Some((name, administrator)), _folder: None }
    }

    /// Creates an empty database file in a temporary folder.
    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = format!("sqlite://{}/peers.db?mode=rwc", folder.path().display());
        let connection = connect(&url).await;
        Self { url, connection, created: None, _folder: Some(folder) }
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        self.created.is_none()
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns the number that a query returns.
    pub(crate) async fn count(&self, sql: &str) -> u64 {
        let statement = Statement::from_string(self.connection.get_database_backend(), sql);
        let row = self.connection.query_one_raw(statement).await.expect("the database answers");
        let count: i64 =
            row.and_then(|row| row.try_get_by_index(0).ok()).expect("the query returns a number");
        u64::try_from(count).expect("a count is not negative")
    }

    /// Drops the database. A peer that was stopped may still have connections.
    pub(crate) async fn drop(self) {
        if let Some((name, administrator)) = self.created {
            let _ = self.connection.close().await;
            let sql = format!("DROP DATABASE {name} WITH (FORCE)");
            administrator.execute_unprepared(&sql).await.expect("the administrator may drop databases");
        }
    }
}

async fn connect(url: &str) -> DatabaseConnection {
    let mut options = sea_orm::ConnectOptions::new(url);
    options.max_connections(2).sqlx_logging(false);
    sea_orm::Database::connect(options).await.expect("the database answers")
}
