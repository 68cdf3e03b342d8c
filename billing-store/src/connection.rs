//! Connections next to the pool: one for short, frequent statements, and one for a task that writes much on SQLite.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, QueryResult, SqlxSqliteConnector, Statement,
    sqlx::{self, ConnectOptions as _, PgConnection},
};
use tokio::sync::Mutex;

use crate::{
    error_class::{ErrorClass, classify, code},
    transaction::{
        QueryOutput, WRITING_ALONE, accept_any_text, execute, failed, query_all, single_round_trip, statement,
    },
};

/// The time that a transaction waits for the previous one on the same connection.
const EXCLUSIVE_TIMEOUT: Duration = Duration::from_mins(2);

/// The number of pages in SQLite's write-ahead log from which on it is written back into the file. Successive batches change the same
/// pages, so a longer log writes less in total; but another connection that commits meanwhile may have to write all of it back.
pub const SQLITE_LOG_PAGES: u32 = 16_384;

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
    let options = (*options).clone().pragma("temp_store", "MEMORY").pragma("wal_autocheckpoint", "0");
    let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).acquire_timeout(EXCLUSIVE_TIMEOUT);
    SqlxSqliteConnector::from_sqlx_sqlite_pool(pool.connect_lazy_with(options))
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

/// The codes with which a server ends a connection without executing the statement: administrator shutdown and restart.
const ENDED: [&str; 2] = ["57P01", "57P02"];

/// A connection next to the pool for short, frequent statements. On PostgreSQL each costs one round trip; a pool also pings a
/// connection before and after each use.
#[derive(Debug)]
pub struct DedicatedConnection {
    db: DatabaseConnection,
    /// `None` while it is used, so that a cancelled statement closes it.
    own: Mutex<Option<PgConnection>>,
}

impl DedicatedConnection {
    /// Returns a connection to the database of this pool. The first statement opens it.
    #[must_use]
    pub fn new(db: DatabaseConnection) -> Self {
        Self { db, own: Mutex::default() }
    }

    /// Returns the rows of a statement, like [`query_all`]; the statement may also change rows.
    pub async fn query_all(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        if self.db.get_database_backend() != DbBackend::Sqlite {
            return Ok(self.send(WRITING_ALONE, &statement).await?.rows);
        }
        query_all(&self.db, statement).await
    }

    /// Returns the number of rows that a statement changed, like [`execute`].
    pub async fn execute(&self, statement: Statement) -> Result<u64, DbErr> {
        if self.db.get_database_backend() != DbBackend::Sqlite {
            return Ok(self.send(WRITING_ALONE, &statement).await?.affected);
        }
        execute(&self.db, statement).await
    }

    /// Returns the number that a query without parameters selects; `None` without a row.
    pub async fn query_scalar(&self, sql: &'static str) -> Result<Option<i64>, DbErr> {
        let statement = Statement::from_string(self.db.get_database_backend(), sql);
        let row = match self.db.get_database_backend() {
            DbBackend::Sqlite => self.db.query_one_raw(statement).await?,
            _ => self.send("", &statement).await?.rows.into_iter().next(),
        };
        row.map(|row| row.try_get_by_index(0)).transpose()
    }

    /// Sends a statement. Uses the pool if another statement, which may wait for a lock, uses the connection.
    async fn send(&self, limits: &str, statement: &Statement) -> Result<QueryOutput, DbErr> {
        let pool = self.db.get_postgres_connection_pool();
        let Ok(mut own) = tokio::time::timeout(DEDICATED_TIMEOUT, self.own.lock()).await else {
            return single_round_trip(pool, limits, statement).await;
        };
        let mut connection = match own.take() {
            Some(connection) => connection,
            None => open(pool).await.map_err(failed)?,
        };
        match single_round_trip(&mut connection, limits, statement).await {
            // The server ended the connection while it was idle, or rolled back the statement: it may be available again.
            Err(error) if code(&error).is_some_and(|code| ENDED.contains(&code.as_str())) => {
                drop(own);
                single_round_trip(pool, limits, statement).await
            }
            Err(error) if classify(&error) == ErrorClass::Lost => Err(error),
            answer => {
                *own = Some(connection);
                answer
            }
        }
    }
}

async fn open(pool: &sqlx::PgPool) -> Result<PgConnection, sqlx::Error> {
    let options = pool.connect_options();
    let opened = async {
        let mut connection = options.connect().await?;
        accept_any_text(&mut connection).await?;
        Ok(connection)
    };
    let opened = tokio::time::timeout(pool.options().get_acquire_timeout(), opened);
    opened.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
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
