//! Connections next to the pool: one for short, frequent statements, and one for a task that writes much on SQLite.

use std::{sync::Arc, time::Duration};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, QueryResult, SqlxSqliteConnector, Statement,
    sqlx::{self, PgConnection, sqlite::SqlitePoolOptions},
};
use tokio::sync::Mutex;
use tracing::warn;

use crate::{
    connection_check::{SHOW_READ_ONLY, discard_open_connections},
    connector::Connector,
    database::Database,
    error_class::{ErrorClass, ServerError, classify, code},
    transaction::{QueryOutput, StatementLimit, execute, failed, query_all, single_round_trip, statement},
};

/// The time that a transaction waits for the previous one on the same connection.
const EXCLUSIVE_TIMEOUT: Duration = Duration::from_mins(2);

/// The number of pages in SQLite's write-ahead log from which on it is written back into the file. Successive batches change the same
/// pages, so a longer log writes less in total; but another connection that commits meanwhile may have to write all of it back.
pub const SQLITE_LOG_PAGES: u32 = 16_384;

/// The page cache of a writer, in KiB as a negative number: it holds the pages that one batch reads and changes. With a smaller one,
/// pages would be written several times before the commit.
const SQLITE_WRITER_CACHE: &str = "-8192";

/// Returns a connection for one task that writes much, until it is closed. On SQLite it is a separate one: the page cache of a
/// connection becomes invalid when another connection writes. Its commits do not write back the log: see [`checkpoint`].
#[must_use]
pub fn exclusive_writer(db: &DatabaseConnection) -> DatabaseConnection {
    if db.get_database_backend() != DbBackend::Sqlite {
        return db.clone();
    }
    let options = db.get_sqlite_connection_pool().connect_options();
    // A statement on several rows journals the previous pages, which would double the writes to a file. Other connections keep
    // temporary data in a file, because sorting a whole fleet would need much memory.
    let options = (*options)
        .clone()
        .pragma("temp_store", "MEMORY")
        .pragma("wal_autocheckpoint", "0")
        .pragma("cache_size", SQLITE_WRITER_CACHE);
    let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(EXCLUSIVE_TIMEOUT);
    SqlxSqliteConnector::from_sqlx_sqlite_pool(without_open_transactions(pool).connect_lazy_with(options))
}

/// Lets a pool close a connection that returns with a transaction open, because its COMMIT or its ROLLBACK failed: after a full disk
/// or an error of the file. It would keep the lock of the file, and with it every other writer, until the process ends.
///
/// The check before a use is left out: a connection to a file is not lost while it is idle.
pub(crate) fn without_open_transactions(pool: SqlitePoolOptions) -> SqlitePoolOptions {
    pool.test_before_acquire(false).after_release(|connection, _| {
        Box::pin(async {
            // SQLite refuses to begin a transaction within another one. This one reads nothing, so it takes no lock.
            let ended = sqlx::raw_sql("BEGIN; COMMIT").execute(connection).await;
            if let Err(error) = &ended {
                warn!("closing a connection to the database whose transaction did not end: {error}");
            }
            Ok(ended.is_ok())
        })
    })
}

/// Writes SQLite's log back into the file if it has at least `pages` pages. To be called between two transactions of an
/// [`exclusive_writer`], when others may write: an automatic checkpoint at the end of a commit would prolong the time that others
/// wait. Pages that cannot be written back stay in the log.
pub async fn checkpoint(db: &DatabaseConnection, pages: u32) -> Result<(), DbErr> {
    if db.get_database_backend() != DbBackend::Sqlite {
        return Ok(());
    }
    let log = db.query_one_raw(statement(db, "PRAGMA wal_checkpoint(NOOP)", [])).await?;
    let length: i64 = log.map_or(Ok(0), |log| log.try_get("", "log"))?;
    if length >= i64::from(pages) {
        db.query_one_raw(statement(db, "PRAGMA wal_checkpoint(PASSIVE)", [])).await?;
    }
    Ok(())
}

/// The time that a statement waits for the previous one on a dedicated connection. Most take a millisecond.
const DEDICATED_TIMEOUT: Duration = Duration::from_millis(20);

/// The codes with which a server ends a connection without executing the statement: administrator shutdown and restart, and
/// `idle_session_timeout`.
const ENDED: [&str; 3] = ["57P01", "57P02", "57P05"];

/// A connection next to the pool for short, frequent statements. On PostgreSQL each costs one round trip; a pool also pings a
/// connection before and after each use. When it is lost, the next statement searches all servers of the URL for the primary, and
/// the pool follows. Clones share the connection.
#[derive(Clone, Debug)]
pub struct DedicatedConnection {
    db: DatabaseConnection,
    /// `None` on SQLite and if every statement uses the pool.
    own: Option<Arc<OwnConnection>>,
}

#[derive(Debug)]
struct OwnConnection {
    connector: Connector,
    /// `None` while it is used, so that a cancelled statement closes it.
    open: Mutex<Option<PgConnection>>,
}

/// Every statement uses the pool, in a process that sends few.
impl From<DatabaseConnection> for DedicatedConnection {
    fn from(db: DatabaseConnection) -> Self {
        Self { db, own: None }
    }
}

impl DedicatedConnection {
    /// Returns a connection to `database`, which `db` is a pool of. The first statement opens it.
    #[must_use]
    pub fn new(db: DatabaseConnection, database: &Database) -> Self {
        let is_file = db.get_database_backend() == DbBackend::Sqlite;
        let own = || OwnConnection { connector: database.connector(), open: Mutex::default() };
        Self { db, own: (!is_file).then(|| Arc::new(own())) }
    }

    /// Returns the pool, for a transaction of several statements.
    #[must_use]
    pub fn pool(&self) -> &DatabaseConnection {
        &self.db
    }

    /// Lets a pool of the same database open its new connections on the server of this connection.
    pub(crate) fn lead(&self, db: &DatabaseConnection) {
        if let Some(own) = &self.own {
            own.lead(db);
        }
    }

    /// Returns the rows of a statement, like [`query_all`]; the statement may also change rows.
    pub async fn query_all(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match &self.own {
            Some(own) => Ok(own.send(&self.db, StatementLimit::Call.before(&statement)).await?.rows),
            None => query_all(&self.db, statement).await,
        }
    }

    /// Returns the number of rows that a statement changed, like [`execute`].
    pub async fn execute(&self, statement: Statement) -> Result<u64, DbErr> {
        match &self.own {
            Some(own) => Ok(own.send(&self.db, StatementLimit::Call.before(&statement)).await?.affected),
            None => execute(&self.db, statement).await,
        }
    }

    /// Returns the first row of a query without parameters, which must not take long: it sets no limits.
    pub async fn query_one(&self, sql: String) -> Result<Option<QueryResult>, DbErr> {
        match &self.own {
            Some(own) => Ok(own.send(&self.db, sql).await?.rows.into_iter().next()),
            None => self.db.query_one_raw(Statement::from_string(self.db.get_database_backend(), sql)).await,
        }
    }
}

impl OwnConnection {
    /// Lets a pool of the same database open its new connections on the server of this connection.
    fn lead(&self, db: &DatabaseConnection) {
        if let Some(options) = self.connector.current_of_several() {
            db.get_postgres_connection_pool().set_connect_options(options);
        }
    }

    /// Sends a statement. Uses the pool `db` if another statement, which may wait for a lock, uses the connection.
    async fn send(&self, db: &DatabaseConnection, message: String) -> Result<QueryOutput, DbErr> {
        let limit = StatementLimit::Call;
        let pool = db.get_postgres_connection_pool();
        let Ok(mut open) = tokio::time::timeout(DEDICATED_TIMEOUT, self.open.lock()).await else {
            return single_round_trip(pool, message, limit).await;
        };
        let mut connection = match open.take() {
            Some(connection) => connection,
            None => self.connect(db).await?,
        };
        match self.checked_round_trip(&mut connection, &message, limit).await {
            // The server ended the connection while it was idle, or rolled back the statement: it may be available again.
            Err(error) if code(&error).is_some_and(|code| ENDED.contains(&code.as_str())) => {
                drop(open);
                single_round_trip(pool, message, limit).await
            }
            Err(error) if classify(&error) == ErrorClass::Lost => Err(error),
            answer => {
                *open = Some(connection);
                answer
            }
        }
    }

    async fn connect(&self, db: &DatabaseConnection) -> Result<PgConnection, DbErr> {
        let connection = self.connector.connect().await.map_err(failed)?;
        self.lead(db);
        Ok(connection)
    }

    /// Sends a statement, and fails if the session has become read-only: a poll of a demoted server would report its old state.
    async fn checked_round_trip(
        &self,
        connection: &mut PgConnection,
        message: &str,
        limit: StatementLimit,
    ) -> Result<QueryOutput, DbErr> {
        if !self.connector.writes() {
            return single_round_trip(connection, message.to_owned(), limit).await;
        }
        let mut output = single_round_trip(connection, format!("{SHOW_READ_ONLY}; {message}"), limit).await?;
        if output.rows.remove(0).try_get_by_index::<String>(0)? == "on" {
            discard_open_connections();
            let message = "the server of this connection has become read-only".to_owned();
            return Err(failed(ServerError::read_only(message).into()));
        }
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::Database;

    use super::*;
    use crate::transaction::begin;

    /// Returns the number of pages in SQLite's log, and the number of those that are written back.
    async fn log(db: &DatabaseConnection) -> (i64, i64) {
        let log = db.query_one_raw(statement(db, "PRAGMA wal_checkpoint(NOOP)", [])).await;
        let log = log.expect("SQLite reports the length of its log").expect("in a row");
        let pages = |column| log.try_get("", column).expect("a number of pages");
        (pages("log"), pages("checkpointed"))
    }

    #[tokio::test]
    async fn connection_with_open_transaction_is_closed() {
        let folder = tempfile::tempdir().expect("a folder is made");
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("open.db").display());
        let db = Database::connect(url).await.expect("a file is made");
        let writer = exclusive_writer(&db);
        // sqlx does not notice this transaction, as it does not notice one whose COMMIT failed.
        writer.execute_unprepared("BEGIN IMMEDIATE").await.expect("a transaction begins");
        let other = begin(&db).await.expect("the lock is free");
        other.commit().await.expect("an empty transaction ends");
        writer.execute_unprepared("BEGIN IMMEDIATE").await.expect("another connection has no transaction");
    }

    #[tokio::test]
    async fn checkpoint_copies_long_log_between_transactions() {
        let folder = tempfile::tempdir().expect("a folder is made");
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("log.db").display());
        let mut options = sea_orm::ConnectOptions::new(url);
        options.map_sqlx_sqlite_opts(|options| {
            let wal = sqlx::sqlite::SqliteJournalMode::Wal;
            options.journal_mode(wal).pragma("wal_autocheckpoint", "8")
        });
        let db = exclusive_writer(&Database::connect(options).await.expect("a file is made"));
        let txn = begin(&db).await.expect("a transaction begins");
        txn.execute_unprepared("CREATE TABLE much (what); INSERT INTO much VALUES (zeroblob(100000))")
            .await
            .expect("much is written");
        txn.commit().await.expect("it is committed");
        let (length, written_back) = log(&db).await;
        assert!(length > 20 && written_back == 0, "the commit leaves {length} pages in the log");

        checkpoint(&db, 1_000).await.expect("a short log");
        assert_eq!(log(&db).await, (length, 0));
        checkpoint(&db, 20).await.expect("a long log");
        assert_eq!(log(&db).await, (length, length));
    }
}
