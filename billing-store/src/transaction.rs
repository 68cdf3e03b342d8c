//! Transactions with limits, and single statements, each in a separate transaction.

use futures_util::TryStreamExt as _;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult, RuntimeErr,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait, Value,
    sqlx::{self, PgConnection, PgExecutor},
};

/// The SQL expression for the current time on SQLite, in microseconds since 1970.
pub const SQLITE_NOW: &str = "CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)";

/// Returns a statement for the backend of `db`, with its parameters.
pub fn statement(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(db.get_database_backend(), sql, values)
}

/// The first statements of each transaction on PostgreSQL. Behind a pooler in transaction mode every transaction may use another
/// server, and a server that another client used may still have statements prepared under the names that sqlx uses, so they are
/// discarded first. For the same reason no statement is outside of a transaction.
/// The successor of a process that is paused inside a transaction waits until the server ends the idle transaction.
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

/// Begins a transaction that may write. On SQLite it acquires the write lock first, and waits for it.
pub async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Immediate, limits!("60s", "10s")).await
}

/// Begins a transaction that reads first and then writes. On SQLite its first write acquires the write lock, which is a conflict if
/// another connection holds it or has written since the first read.
pub async fn begin_deferred(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Deferred, limits!("60s", "10s")).await
}

/// Begins a transaction that only reads. It may take up to ten minutes per statement.
pub async fn begin_read(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Deferred, limits!("10min", "60s")).await
}

/// Begins in a separate task, which continues if its caller is dropped: a BEGIN whose result is not awaited would stay open on a
/// connection that the next caller gets. (A transaction that is dropped later is rolled back.)
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
    begin.await.unwrap_or_else(|error| Err(DbErr::Custom(format!("cannot begin a transaction: {error}"))))
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

/// Executes a statement in a separate transaction; returns the number of changed rows.
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

/// The result of a statement on PostgreSQL.
#[derive(Default)]
pub(crate) struct QueryOutput {
    pub(crate) rows: Vec<QueryResult>,
    pub(crate) affected: u64,
}

/// Sends a statement with its limits as one message of the simple protocol: one transaction and one round trip, without a prepared
/// statement that a pooler would have to know.
pub(crate) async fn single_round_trip(
    connection: impl PgExecutor<'_>,
    limits: &str,
    statement: &Statement,
) -> Result<QueryOutput, DbErr> {
    // The text contains the parameters, quoted.
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

/// Prepares a new connection to PostgreSQL. A database with encoding `SQL_ASCII` contains bytes of any encoding, and rejects a whole
/// result because of one text that is not UTF-8. With this setting the server sends texts unchanged, and the reader checks them.
pub async fn accept_any_text(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = "SELECT set_config('client_encoding', 'SQL_ASCII', false)
                WHERE current_setting('server_encoding') = 'SQL_ASCII'";
    sqlx::raw_sql(sql).execute(connection).await.map(drop)
}
