//! Opening the database: the limits of the pool, and retries while the database cannot be reached.

use std::{
    fmt::Display,
    str::FromStr,
    time::{Duration, Instant},
};

use sea_orm::{
    ConnectOptions, DatabaseConnection, DbBackend, DbErr, RuntimeErr,
    sqlx::{
        self, ConnectOptions as _, Connection as _,
        postgres::PgConnectOptions,
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
    },
};
use tracing::warn;

use crate::{
    connection::SQLITE_LOG_PAGES,
    database_url::DatabaseUrl,
    error_class::{ErrorClass, classify, code, with_help},
    transaction::accept_any_text,
};

/// The waits between attempts to connect at the start: five attempts in total.
const CONNECT_BACKOFF: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];
/// The time that another process may take to create or close an SQLite file.
const FIRST_OPEN: Duration = Duration::from_secs(1);
/// The time limit for opening a connection, and for waiting for one of the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// The page cache of an SQLite connection, in KiB as a negative number: it holds the pages that one batch changes. With a smaller
/// one, pages would be written several times before the commit.
const SQLITE_CACHE: &str = "-32768";
/// The number of rows that SQLite's thread reads ahead. Each time it waits for the reader, two threads must be woken.
const SQLITE_ROWS: usize = 1_024;
/// The time that a writer waits for another transaction on SQLite.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A database that can be opened.
#[derive(Clone, Debug)]
pub struct Database {
    url: DatabaseUrl,
    application_name: &'static str,
}

/// The size of a connection pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Six connections on PostgreSQL, four on SQLite.
    Shared,
    /// One connection, for tasks that run one statement after another.
    Single,
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
        Self { url, application_name: "billing-scheduler" }
    }

    /// Sets the name of the connections in `pg_stat_activity.application_name` of PostgreSQL; `billing-scheduler` by default.
    #[must_use]
    pub fn with_application_name(mut self, name: &'static str) -> Self {
        self.application_name = name;
        self
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
    pub async fn connect(&self, pool: Pool) -> Result<DatabaseConnection, ConnectError> {
        let began = Instant::now();
        loop {
            match self.connect_once(pool).await {
                // While another process creates the file or closes it as the last one, SQLite fails immediately.
                Err(error)
                    if self.url.backend() == DbBackend::Sqlite
                        && classify(&error.source) == ErrorClass::Conflict
                        && began.elapsed() < FIRST_OPEN =>
                {
                    tokio::time::sleep(FIRST_OPEN / 20).await;
                }
                result => return result,
            }
        }
    }

    async fn connect_once(&self, pool: Pool) -> Result<DatabaseConnection, ConnectError> {
        // A pool retries until its timeout and then reports only the timeout: one plain connection first shows the cause.
        self.probe().await.map_err(|source| self.failed(source))?;
        let application_name = self.application_name;
        let mut options = ConnectOptions::new(self.url.expose());
        options
            .max_connections(match (pool, self.url.backend()) {
                (Pool::Single, _) => 1,
                (Pool::Shared, DbBackend::Sqlite) => 4,
                (Pool::Shared, _) => 6,
            })
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .sqlx_logging(false)
            .map_sqlx_sqlite_opts(|options| {
                options
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .busy_timeout(busy_timeout())
                    .foreign_keys(true)
                    .row_buffer_size(SQLITE_ROWS)
                    .pragma("cache_size", SQLITE_CACHE)
                    .pragma("wal_autocheckpoint", SQLITE_LOG_PAGES.to_string())
            })
            .map_sqlx_postgres_opts(move |options| pooler_safe_options(options, application_name))
            // A future that was dropped early leaves unsent data on its connection, at least a ROLLBACK. Such a connection is not
            // reused.
            .map_sqlx_postgres_pool_opts(|pool| {
                let pool = pool.after_connect(|connection, _| Box::pin(accept_any_text(connection)));
                pool.after_release(|connection, _| Box::pin(async { Ok(!connection.should_flush()) }))
            });
        sea_orm::Database::connect(options).await.map_err(|source| self.failed(source))
    }

    /// Opens a pool; retries after 1, 2, 4 and 8 seconds if the database cannot be reached or another process locks it.
    pub async fn connect_with_retry(&self, pool: Pool) -> Result<DatabaseConnection, ConnectError> {
        with_retry(async || self.connect(pool).await, |error| Some(&error.source)).await
    }

    async fn probe(&self) -> Result<(), DbErr> {
        let refused = |error: sqlx::Error| DbErr::Conn(RuntimeErr::SqlxError(error.into()));
        let probe = async {
            if self.url.backend() == DbBackend::Sqlite {
                let options = SqliteConnectOptions::from_str(self.url.expose())?;
                options.busy_timeout(busy_timeout()).connect().await?.close().await
            } else {
                let options = pooler_safe_options(
                    PgConnectOptions::from_str(self.url.expose())?,
                    self.application_name,
                );
                options.connect().await?.close().await
            }
        };
        tokio::time::timeout(ACQUIRE_TIMEOUT, probe)
            .await
            .map_err(|_| refused(sqlx::Error::PoolTimedOut))?
            .map_err(refused)
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
                    matches!(classify(source), ErrorClass::Lost | ErrorClass::Conflict) || is_full(source)
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

/// Whether the error means that the disk is full.
fn is_full(error: &DbErr) -> bool {
    matches!(code(error).as_deref(), Some("13" | "53100"))
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
