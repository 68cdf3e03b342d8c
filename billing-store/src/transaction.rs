//! Transactions with limits, and single statements, each in a separate transaction.

use futures_util::TryStreamExt as _;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult, RuntimeErr,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait, Value,
    sqlx::{self, PgConnection, PgExecutor},
};

/// Now on SQLite, in microseconds since 1970.
pub const SQLITE_NOW: &str = "CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)";

/// Returns a statement for the backend of `db`, with its parameters.
pub fn statement(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(db.get_database_backend(), sql, values)
}

/// What each transaction on PostgreSQL begins with. Behind a pooler in transaction mode every transaction may have another
/// server, and one that served another client may still have statements prepared under the names that sqlx uses; they are
/// forgotten first. For the same reason there is no statement outside a transaction.
/// A process that is paused inside a transaction keeps its successor waiting until the server ends it for being idle.
macro_rules! limits {
    ($statement:literal, $idle:literal) => {
        concat!(
            "DEALLOCATE ALL; SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '",
            $statement,
            "'; SET LOCAL idle_in_transaction_session_timeout = '",
            $idle,
            "'"
        )
    };
}

/// Begins a transaction that may write: on SQLite it takes the one place for a writer at once, and waits for it.
pub async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Immediate, limits!("60s", "10s")).await
}

/// Begins a transaction that reads first and then writes. On SQLite it takes the one place for a writer with its first write, and
/// that is a conflict if another connection is about to write or has written since its first read.
pub async fn begin_deferred(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Deferred, limits!("60s", "10s")).await
}

/// Begins a transaction that only reads, and may take its time.
pub async fn begin_read(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Deferred, limits!("10min", "60s")).await
}

/// In a separate task, which continues if its caller is dropped: a BEGIN whose result is not awaited would stay open on a
/// connection that the next one gets. (What is dropped later is rolled back by its transaction.)
async fn begin_under(
    db: &DatabaseConnection,
    sqlite_transaction_mode: SqliteTransactionMode,
    limits: &'static str,
) -> Result<DatabaseTransaction, DbErr> {
    let db = db.clone();
    let begin = tokio::spawn(async move {
        let sqlite = db.get_database_backend() == DbBackend::Sqlite;
        let sqlite_transaction_mode = sqlite.then_some(sqlite_transaction_mode);
        let txn = db
            .begin_with_options(TransactionOptions { sqlite_transaction_mode, ..Default::default() })
            .await?;
        if !sqlite {
            txn.execute_unprepared(limits).await?;
        }
        Ok(txn)
    });
    begin.await.unwrap_or_else(|error| Err(DbErr::Custom(format!("a transaction did not begin: {error}"))))
}

/// Returns the rows of a statement that only reads, in a separate transaction.
pub async fn query_all(db: &DatabaseConnection, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
    if db.get_database_backend() != DbBackend::Sqlite {
        return Ok(single_round_trip(db.get_postgres_connection_pool(), READING_ALONE, &statement)
            .await?
            .rows);
    }
    let txn = begin_read(db).await?;
    let rows = txn.query_all_raw(statement).await?;
    txn.commit().await?;
    Ok(rows)
}

/// Returns the first row of a statement that only reads, in a separate transaction.
pub async fn query_one(db: &DatabaseConnection, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
    Ok(query_all(db, statement).await?.into_iter().next())
}

/// Returns how many rows a statement changed, in a separate transaction.
pub async fn execute(db: &DatabaseConnection, statement: Statement) -> Result<u64, DbErr> {
    if db.get_database_backend() != DbBackend::Sqlite {
        return Ok(single_round_trip(db.get_postgres_connection_pool(), WRITING_ALONE, &statement)
            .await?
            .affected);
    }
    let txn = begin(db).await?;
    let result = txn.execute_raw(statement).await?;
    txn.commit().await?;
    Ok(result.rows_affected())
}

/// The limits of a statement that is alone in its transaction.
pub(crate) const WRITING_ALONE: &str = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '60s'; ";
const READING_ALONE: &str = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '10min'; ";

/// What PostgreSQL answered.
#[derive(Default)]
pub(crate) struct QueryOutput {
    pub(crate) rows: Vec<QueryResult>,
    pub(crate) affected: u64,
}

/// A statement with its limits as one message of the simple protocol, which is one transaction and one round trip, and prepares
/// nothing that a pooler would have to know.
pub(crate) async fn single_round_trip(
    connection: impl PgExecutor<'_>,
    limits: &str,
    statement: &Statement,
) -> Result<QueryOutput, DbErr> {
    // The parameters are written into the text, quoted.
    let text = sqlx::AssertSqlSafe(format!("{limits}{statement}"));
    let mut answers = sqlx::raw_sql(text).fetch_many(connection);
    let mut answer = QueryOutput::default();
    while let Some(part) = answers.try_next().await.map_err(failed)? {
        match part {
            sqlx::Either::Left(done) => answer.affected += done.rows_affected(),
            sqlx::Either::Right(row) => answer.rows.push(row.into()),
        }
    }
    Ok(answer)
}

pub(crate) fn failed(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// Prepares a new connection to PostgreSQL. A database whose encoding is `SQL_ASCII` holds bytes of any encoding, and refuses a
/// whole result for one text that is not UTF-8. The server sends texts as they are; the reader of a text checks it.
pub async fn accept_any_text(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = "SELECT set_config('client_encoding', 'SQL_ASCII', false)
                WHERE current_setting('server_encoding') = 'SQL_ASCII'";
    sqlx::raw_sql(sql).execute(connection).await.map(drop)
}
