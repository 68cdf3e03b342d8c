//! Opening the database: the limits of the pool, and retries while the database cannot be reached.

use std::{fmt::Display, str::FromStr, time::Duration};

use sea_orm::{
    ConnectOptions, DatabaseConnection, DbBackend, DbErr, RuntimeErr, SqlxPostgresConnector,
    sqlx::{
        self, ConnectOptions as _, Connection as _,
        postgres::{PgConnectOptions, PgPoolOptions},
        sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous},
    },
};
use tracing::warn;

use crate::{
    connection::{SQLITE_LOG_PAGES, without_open_transactions},
    connector::{Access, Connector},
    database_url::DatabaseUrl,
    error_class::{
        ErrorClass, SQLITE_BUSY, SQLITE_CANTOPEN, SQLITE_LOCKED, SQLITE_READONLY, classify, sqlite_code,
        with_help,
    },
};

/// The waits between attempts to connect at the start: five attempts in total.
const CONNECT_BACKOFF: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];
/// How often a file is opened while another process may be creating or closing it, and the wait between two attempts.
const FIRST_OPEN_ATTEMPTS: u32 = 20;
const FIRST_OPEN_INTERVAL: Duration = Duration::from_millis(50);
/// The time limit for opening a connection, and for waiting for one of the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// The page cache of an SQLite connection, in KiB as a negative number. What it does not hold is in the cache of the system.
const SQLITE_CACHE: &str = "-4096";
/// The number of rows that SQLite's thread reads ahead. Each time it waits for the reader, two threads must be woken.
const SQLITE_ROWS: usize = 1_024;
/// The time that a writer waits for another transaction on SQLite.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A database that can be opened.
#[derive(Clone, Debug)]
pub struct Database {
    url: DatabaseUrl,
    application_name: &'static str,
    access: Access,
    schema: Option<String>,
    logs_statements: bool,
}

/// The size of a connection pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Six connections on PostgreSQL, four on SQLite.
    Shared,
    /// Two connections, for pages that persons read. On SQLite they cannot write.
    Pages,
    /// One connection, for tasks that run one statement after another.
    Single,
}

impl Pool {
    fn connections(self, shared: u32) -> u32 {
        match self {
            Self::Shared => shared,
            Self::Pages => 2,
            Self::Single => 1,
        }
    }
}

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {url}: {message}")]
pub struct ConnectError {
    url: String,
    message: String,
    /// The error of the driver. Its text may contain the password.
    pub source: DbErr,
}

impl Database {
    /// Returns the database at `url`. Nothing is opened yet.
    #[must_use]
    pub fn new(url: DatabaseUrl) -> Self {
        Self {
            url,
            application_name: "billing-scheduler",
            access: Access::Write,
            schema: None,
            logs_statements: false,
        }
    }

    /// Returns the same database for a caller that only reads. The server may then be a standby, but one that accepts writes is
    /// preferred, because a standby may lag behind.
    #[must_use]
    pub fn reading(&self) -> Self {
        Self { access: Access::Read, ..self.clone() }
    }

    /// Sets the `search_path` of the sessions on PostgreSQL, as names with commas between them.
    #[must_use]
    pub fn with_schema(mut self, schema: Option<String>) -> Self {
        self.schema = schema;
        self
    }

    /// Sets whether each statement is logged.
    #[must_use]
    pub fn with_statement_log(mut self, logs_statements: bool) -> Self {
        self.logs_statements = logs_statements;
        self
    }

    /// Sets the name of the connections in `pg_stat_activity.application_name` of PostgreSQL; `billing-scheduler` by default.
    #[must_use]
    pub fn with_application_name(mut self, name: &'static str) -> Self {
        self.application_name = name;
        self
    }

    /// Returns the same database, opened with another login.
    #[must_use]
    pub fn with_url(&self, url: DatabaseUrl) -> Self {
        Self { url, ..self.clone() }
    }

    /// Returns the same database, whose file is created if it does not exist.
    #[must_use]
    pub fn creating(&self) -> Self {
        Self { url: self.url.creating(), ..self.clone() }
    }

    /// Returns the URL of the database.
    #[must_use]
    pub fn url(&self) -> &DatabaseUrl {
        &self.url
    }

    /// Opens a pool, or fails within seconds.
    ///
    /// # Errors
    /// The message names the database without its password, and contains the cause with help for the operator: the server or the file
    /// cannot be reached, it rejects the login, or its certificate is invalid.
    pub async fn connect(&self, pool: Pool) -> Result<DatabaseConnection, ConnectError> {
        let opened = match self.url.backend() {
            DbBackend::Sqlite => self.connect_to_file(pool).await,
            _ => self.connect_to_server(pool).await,
        };
        opened.map_err(|source| self.failed(source))
    }

    async fn connect_to_file(&self, pool: Pool) -> Result<DatabaseConnection, DbErr> {
        // Open until the pool has a connection: the process keeps the shared memory of the log as long as any connection is open.
        let probe = self.probe_file().await?;
        let mut options = ConnectOptions::new(self.url.expose());
        options
            .max_connections(pool.connections(4))
            .min_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .sqlx_logging(self.logs_statements)
            .map_sqlx_sqlite_opts(move |options| {
                options
                    .pragma("query_only", if pool == Pool::Pages { "on" } else { "off" })
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .busy_timeout(busy_timeout())
                    .foreign_keys(true)
                    .row_buffer_size(SQLITE_ROWS)
                    .pragma("cache_size", SQLITE_CACHE)
                    .pragma("wal_autocheckpoint", SQLITE_LOG_PAGES.to_string())
            })
            .map_sqlx_sqlite_pool_opts(|pool| without_open_transactions(pool).max_lifetime(None));
        let opened = sea_orm::Database::connect(options).await;
        probe.close().await.map_err(refused)?;
        opened
    }

    /// Opens one plain connection, which shows the cause of a failure: a pool retries until its timeout and then reports only the
    /// timeout.
    ///
    /// Retries while another process creates or closes the file. The files of the log belong to the first process that opens the
    /// database. If root does, SQLite gives them to the owner of the database a moment later. Who opens the database in between cannot
    /// open it, or opens the shared memory read-only; then no connection of this process can write until all of them are closed.
    async fn probe_file(&self) -> Result<SqliteConnection, DbErr> {
        for _ in 0..FIRST_OPEN_ATTEMPTS {
            match self.open_used_file().await {
                Err(error) if self.may_be_in_creation(&error) => {
                    tokio::time::sleep(FIRST_OPEN_INTERVAL).await;
                }
                result => return result.map_err(refused),
            }
        }
        self.open_file().await.map_err(refused)
    }

    async fn open_file(&self) -> Result<SqliteConnection, sqlx::Error> {
        let options = SqliteConnectOptions::from_str(self.url.expose())?.busy_timeout(busy_timeout());
        tokio::time::timeout(ACQUIRE_TIMEOUT, options.connect())
            .await
            .map_err(|_| sqlx::Error::PoolTimedOut)?
    }

    /// Opens the file and its log, which SQLite does not open before the first statement.
    async fn open_used_file(&self) -> Result<SqliteConnection, sqlx::Error> {
        let first = match self.access {
            Access::Read => "PRAGMA schema_version",
            Access::Write => "PRAGMA busy_timeout = 0; BEGIN IMMEDIATE; ROLLBACK",
        };
        let mut probe = self.open_file().await?;
        match sqlx::raw_sql(first).execute(&mut probe).await {
            // The lock of another writer shows that the log is open.
            Err(error) if self.access == Access::Read || sqlite_code(&error) != Some(SQLITE_BUSY) => {
                probe.close().await?;
                Err(error)
            }
            _ => Ok(probe),
        }
    }

    /// Whether another process may be creating the file or its log, or closing it as the last one.
    fn may_be_in_creation(&self, error: &sqlx::Error) -> bool {
        match sqlite_code(error) {
            Some(SQLITE_BUSY | SQLITE_LOCKED | SQLITE_READONLY) => true,
            Some(SQLITE_CANTOPEN) => self.url.file().is_some_and(|file| file.exists()),
            _ => false,
        }
    }

    async fn connect_to_server(&self, pool: Pool) -> Result<DatabaseConnection, DbErr> {
        let connector = self.connector();
        // It shows the cause of a failure, and which server is suitable.
        let probe = connector.connect().await.map_err(refused)?;
        probe.close().await.map_err(refused)?;
        let options =
            PgPoolOptions::new().max_connections(pool.connections(6)).acquire_timeout(ACQUIRE_TIMEOUT);
        Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(connector.pool(options)))
    }

    /// Returns a connector to the servers of the URL.
    pub(crate) fn connector(&self) -> Connector {
        let (application_name, logs_statements) = (self.application_name, self.logs_statements);
        Connector::new(self.url.servers(), self.access, self.schema.as_deref(), |options| {
            let options = pooler_safe_options(options, application_name);
            if logs_statements { options } else { options.disable_statement_logging() }
        })
    }

    /// Opens a pool; retries after 1, 2, 4 and 8 seconds if the database cannot be reached or another process locks it.
    pub async fn connect_with_retry(&self, pool: Pool) -> Result<DatabaseConnection, ConnectError> {
        with_retry(async || self.connect(pool).await, |error| Some(&error.source)).await
    }

    fn failed(&self, source: DbErr) -> ConnectError {
        let message = self.url.redact(&with_help(&source));
        ConnectError { url: self.url.to_string(), message, source }
    }
}

/// Calls `attempt` up to five times, with waits of 1, 2, 4 and 8 seconds, while it fails with a temporary error: a lost connection, a
/// lock of another process, or a full disk. Two processes that start at the same time on one SQLite file may block each other. A
/// wrong password is not retried. `source` returns the database error in an error.
pub async fn with_retry<T, E: Display>(
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
    source: impl Fn(&E) -> Option<&DbErr>,
) -> Result<T, E> {
    for wait in CONNECT_BACKOFF {
        match attempt().await {
            Err(error)
                if source(&error).is_some_and(|source| {
                    matches!(classify(source), ErrorClass::Lost | ErrorClass::Conflict | ErrorClass::Storage)
                }) =>
            {
                warn!("{error}; next attempt in {} s", wait.as_secs());
                tokio::time::sleep(wait).await;
            }
            result => return result,
        }
    }
    attempt().await
}

fn refused(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(error.into()))
}

fn busy_timeout() -> Duration {
    #[cfg(feature = "testing")]
    if let Some(ms) = crate::fault_injection::lock_timeout_ms() {
        return Duration::from_millis(ms);
    }
    BUSY_TIMEOUT
}

/// Returns options for PgBouncer in transaction mode, which may use another server for each transaction, where no statement is
/// prepared, and rejects start-up parameters that it does not know.
fn pooler_safe_options(options: PgConnectOptions, application_name: &str) -> PgConnectOptions {
    options.statement_cache_capacity(0).extra_float_digits(None).application_name(application_name)
}
