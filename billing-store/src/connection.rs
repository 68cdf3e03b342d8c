//! Connections next to the pool: one for short statements that repeat, and one for a task that writes much on SQLite.

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

/// How long a transaction waits for the one before it on the same connection.
const EXCLUSIVE_TIMEOUT: Duration = Duration::from_mins(2);

/// From how many pages on SQLite's log is written back into the file. Batches in a row change the same pages, so the more of them
/// the log takes, the less is written in all; but another connection that commits meanwhile may have to write all of it back.
pub const SQLITE_LOG_PAGES: u32 = 16_384;

/// The same database for one task that writes much, until it is closed. On SQLite that is a separate connection: what each
/// connection keeps of the file counts no more once another one has written. Its commits leave the log alone: see [`checkpoint`].
#[must_use]
pub fn exclusive_writer(db: &DatabaseConnection) -> DatabaseConnection {
    if db.get_database_backend() != DbBackend::Sqlite {
        return db.clone();
    }
    let options = db.get_sqlite_connection_pool().connect_options();
    // A statement over several rows notes what pages were before; in a file that is as much to write again. Elsewhere it stays a
    // file's, or to sort a whole fleet would take memory for all of it.
    let options = (*options).clone().pragma("temp_store", "MEMORY").pragma("wal_autocheckpoint", "0");
    let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).acquire_timeout(EXCLUSIVE_TIMEOUT);
    SqlxSqliteConnector::from_sqlx_sqlite_pool(pool.connect_lazy_with(options))
}

/// Writes SQLite's log back into the file if it is as long as `pages`: between two transactions of a connection that is
/// [`exclusive_writer`], when others may write. SQLite would do it automatically at the end of a commit, whose time is then no measure of how
/// long others were kept waiting. Never a reason to fail: what could not be written back stays in the log.
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

/// How long a statement waits for the one before it on a line. Most take a millisecond.
const DEDICATED_TIMEOUT: Duration = Duration::from_millis(20);

/// The codes with which a server ends a connection without an effect of the statement: at an administrator's command, or because it
/// restarts.
const ENDED: [&str; 2] = ["57P01", "57P02"];

/// A connection next to the pool for short statements that are sent again and again. On PostgreSQL each costs one round trip: a pool
/// pings a connection before each use and after it.
#[derive(Debug)]
pub struct DedicatedConnection {
    db: DatabaseConnection,
    /// Empty while it is used, so that a cancelled statement takes it along.
    own: Mutex<Option<PgConnection>>,
}

impl DedicatedConnection {
    /// To the database of this pool; it opens with the first statement.
    #[must_use]
    pub fn new(db: DatabaseConnection) -> Self {
        Self { db, own: Mutex::default() }
    }

    /// As [`query_all`], also for a statement that changes rows and returns them.
    pub async fn query_all(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        if self.db.get_database_backend() != DbBackend::Sqlite {
            return Ok(self.send(WRITING_ALONE, &statement).await?.rows);
        }
        query_all(&self.db, statement).await
    }

    /// Returns how many rows a statement changed, like [`execute`].
    pub async fn execute(&self, statement: Statement) -> Result<u64, DbErr> {
        if self.db.get_database_backend() != DbBackend::Sqlite {
            return Ok(self.send(WRITING_ALONE, &statement).await?.affected);
        }
        execute(&self.db, statement).await
    }

    /// The one number that a query without parameters answers with, at the least cost there is.
    pub async fn query_scalar(&self, sql: &'static str) -> Result<Option<i64>, DbErr> {
        let statement = Statement::from_string(self.db.get_database_backend(), sql);
        let row = match self.db.get_database_backend() {
            DbBackend::Sqlite => self.db.query_one_raw(statement).await?,
            _ => self.send("", &statement).await?.rows.into_iter().next(),
        };
        row.map(|row| row.try_get_by_index(0)).transpose()
    }

    /// Uses the pool if another statement, which may wait for a lock, keeps the connection busy.
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

    /// How many pages SQLite's log has, and how many of them are in the file as well.
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
