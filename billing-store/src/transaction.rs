//! Transactions with limits, and single statements, each in a separate transaction.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::TryStreamExt as _;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult, QueryResult,
    RuntimeErr, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait, Value,
    sqlx::{self, PgExecutor},
};

use crate::{
    connection_check::discard_open_connections,
    error_class::{is_read_only, without_source_line},
    fault_injection::before_call,
};

/// The SQL expression for the current time on SQLite, in microseconds since 1970.
pub const SQLITE_NOW: &str = "CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)";

/// Returns a statement for the backend of `db`, with its parameters.
pub fn statement(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(db.get_database_backend(), sql, values)
}

/// The time that one statement may take on PostgreSQL: the `statement_timeout` of the server. The client waits three seconds longer,
/// then closes the connection and reports it as lost: a host that lost its power sends neither FIN nor RST, so the client would wait
/// without end. SQLite has no connection that can be lost, and no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementLimit {
    /// 5 s: a claim, a renewal, a poll, a readiness check.
    Call,
    /// 10 s: a statement of a batch.
    Batch,
    /// 60 s: a statement about a whole fleet.
    Fleet,
    /// 10 min: a report or an audit.
    Report,
}

tokio::task_local! {
    /// Set while this task only reads: the most that one of its statements may take.
    static READING: Duration;
}

/// Does `work`, which only reads. On PostgreSQL its transactions are read-only, and none of its statements may take longer than `limit`,
/// whatever it could take otherwise.
pub async fn reading_within<T>(limit: Duration, work: impl Future<Output = T>) -> T {
    READING.scope(limit, work).await
}

/// The time that the client waits for an answer after the limit of the server.
const GRACE: Duration = Duration::from_secs(3);

impl StatementLimit {
    fn statement_timeout(self) -> Duration {
        let own = match self {
            Self::Call => Duration::from_secs(5),
            Self::Batch => Duration::from_secs(10),
            Self::Fleet => Duration::from_mins(1),
            Self::Report => Duration::from_mins(10),
        };
        READING.try_with(|limit| own.min(*limit)).unwrap_or(own)
    }

    /// Returns the time that the client waits for the answer to one statement.
    pub(crate) fn deadline(self) -> Duration {
        self.statement_timeout() + GRACE
    }

    /// Returns the first statements of each transaction on PostgreSQL. Behind a pooler in transaction mode every transaction may use
    /// another server, and a server that another client used may still have statements prepared under the names that sqlx uses, so
    /// they are discarded first. For the same reason no statement is outside of a transaction.
    /// The successor of a process that is paused inside a transaction waits until the server ends the idle transaction.
    fn of_transaction(self) -> String {
        let idle = if self == Self::Report { "60s" } else { "10s" };
        let limits = self.of_statement();
        format!("{limits}DEALLOCATE ALL; SET LOCAL idle_in_transaction_session_timeout = '{idle}'")
    }

    /// Replaces the limits of the role and of the database, and their isolation level: a batch reads what is due after it has waited
    /// for the locks, which a snapshot from before would not show.
    fn of_statement(self) -> String {
        let ms = self.statement_timeout().as_millis();
        let access = if READING.try_with(|_| ()).is_ok() { ", READ ONLY" } else { "" };
        format!(
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED{access}; SET LOCAL lock_timeout = '5s'; \
             SET LOCAL statement_timeout = '{ms}ms'; "
        )
    }

    /// Returns the text of a statement that is alone in its transaction, after its limits.
    pub(crate) fn before(self, statement: &Statement) -> String {
        format!("{}{statement}", self.of_statement())
    }
}

/// A transaction whose every call has a deadline on PostgreSQL: see [`StatementLimit`]. Dropped, it is rolled back. After a deadline
/// its connection is closed and not used again.
#[derive(Debug)]
pub struct Transaction {
    inner: DatabaseTransaction,
    limit: StatementLimit,
    /// Whether a deadline has passed.
    lost: AtomicBool,
}

impl Transaction {
    /// Commits. An error of the class [`Lost`](crate::ErrorClass::Lost) leaves open whether the server committed.
    pub async fn commit(self) -> Result<(), DbErr> {
        self.ensure_answering()?;
        within(self.get_database_backend(), self.limit, self.inner.commit()).await
    }

    /// Rolls back. A transaction whose connection is lost is rolled back by the server.
    pub async fn rollback(self) -> Result<(), DbErr> {
        if self.lost.load(Ordering::Relaxed) {
            return Ok(());
        }
        within(self.get_database_backend(), self.limit, self.inner.rollback()).await
    }

    fn ensure_answering(&self) -> Result<(), DbErr> {
        if self.lost.load(Ordering::Relaxed) {
            return Err(failed(no_answer(self.limit.deadline())));
        }
        Ok(())
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, DbErr>> + Send) -> Result<T, DbErr> {
        self.ensure_answering()?;
        let result = within(self.get_database_backend(), self.limit, call).await;
        if result.as_ref().is_err_and(is_unanswered) {
            self.lost.store(true, Ordering::Relaxed);
        }
        result
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        self.inner.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.call(self.inner.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.call(self.inner.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.call(self.inner.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.call(self.inner.query_all_raw(statement)).await
    }
}

/// Waits for a call to the database, on PostgreSQL no longer than three seconds after `limit`. A call that takes longer is dropped
/// and its connection closed. That is safe: a lease is protected by its fencing token, and the next locked read shows whether the
/// server committed.
///
/// # Errors
/// Those of the call, and [`Lost`](crate::ErrorClass::Lost) after the limit.
pub async fn within<T>(
    backend: DbBackend,
    limit: StatementLimit,
    call: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    before_call();
    if backend == DbBackend::Sqlite { call.await } else { answered_within(limit.deadline(), call).await }
}

async fn answered_within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    let answer = tokio::time::timeout(deadline, call).await;
    let answer = answer.unwrap_or_else(|_| Err(failed(unanswered(deadline)))).map_err(without_source_line);
    if answer.as_ref().is_err_and(is_read_only) {
        discard_open_connections();
    }
    answer
}

/// Returns the error of a call without an answer, whose connection may still be busy with it.
pub(crate) fn unanswered(deadline: Duration) -> sqlx::Error {
    discard_open_connections();
    no_answer(deadline)
}

fn no_answer(deadline: Duration) -> sqlx::Error {
    let message =
        format!("the database did not answer within {} s; its connection is closed", deadline.as_secs());
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, message))
}

fn is_unanswered(error: &DbErr) -> bool {
    matches!(error, DbErr::Query(RuntimeErr::SqlxError(error))
        if matches!(&**error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut))
}

/// Begins a transaction that may write: on SQLite it takes the one place for a writer at once, and waits for it. `db` is a pool that
/// [`Database::connect`](crate::Database::connect) opened.
pub async fn begin(db: &DatabaseConnection) -> Result<Transaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Immediate, StatementLimit::Batch).await
}

/// As [`begin`], for a command whose statements concern a whole fleet.
pub async fn begin_command(db: &DatabaseConnection) -> Result<Transaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Immediate, StatementLimit::Fleet).await
}

/// Begins a transaction that reads first and then writes. On SQLite it takes the one place for a writer with its first write, and
/// that is a conflict if another connection is about to write or has written since its first read.
pub async fn begin_deferred(db: &DatabaseConnection) -> Result<Transaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Deferred, StatementLimit::Batch).await
}

/// Begins a transaction that only reads.
pub async fn begin_read(db: &DatabaseConnection, limit: StatementLimit) -> Result<Transaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Deferred, limit).await
}

/// Begins in a separate task, which continues if its caller is dropped: a BEGIN whose result is not awaited would stay open on a
/// connection that the next caller gets. (A transaction that is dropped later is rolled back.)
async fn begin_under(
    db: &DatabaseConnection,
    sqlite_transaction_mode: SqliteTransactionMode,
    limit: StatementLimit,
) -> Result<Transaction, DbErr> {
    let db = db.clone();
    // The task that begins does not know the limit of this one.
    let limits = limit.of_transaction();
    let begin = tokio::spawn(async move {
        let backend = db.get_database_backend();
        let sqlite = backend == DbBackend::Sqlite;
        let sqlite_transaction_mode = sqlite.then_some(sqlite_transaction_mode);
        let begin = async {
            let options = TransactionOptions { sqlite_transaction_mode, ..Default::default() };
            let txn = db.begin_with_options(options).await?;
            if !sqlite {
                txn.execute_unprepared(&limits).await?;
            }
            Ok(Transaction { inner: txn, limit, lost: AtomicBool::new(false) })
        };
        within(backend, limit, begin).await
    });
    begin.await.unwrap_or_else(|error| Err(DbErr::Custom(format!("cannot begin a transaction: {error}"))))
}

/// Returns the rows of a statement that only reads a few rows, in a separate transaction.
pub async fn query_all(db: &DatabaseConnection, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
    query_within(db, StatementLimit::Batch, statement).await
}

/// Returns the first row of a statement that only reads a few rows, in a separate transaction.
pub async fn query_one(db: &DatabaseConnection, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
    Ok(query_all(db, statement).await?.into_iter().next())
}

/// Returns the rows of a statement that only reads, about a whole fleet, in a separate transaction.
pub async fn query_fleet(db: &DatabaseConnection, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
    query_within(db, StatementLimit::Fleet, statement).await
}

async fn query_within(
    db: &DatabaseConnection,
    limit: StatementLimit,
    statement: Statement,
) -> Result<Vec<QueryResult>, DbErr> {
    if db.get_database_backend() != DbBackend::Sqlite {
        return Ok(single_round_trip(db.get_postgres_connection_pool(), limit.before(&statement), limit)
            .await?
            .rows);
    }
    let txn = begin_read(db, limit).await?;
    let rows = txn.query_all_raw(statement).await?;
    txn.commit().await?;
    Ok(rows)
}

/// Executes a statement in a separate transaction; returns the number of changed rows.
pub async fn execute(db: &DatabaseConnection, statement: Statement) -> Result<u64, DbErr> {
    if db.get_database_backend() != DbBackend::Sqlite {
        let limit = StatementLimit::Batch;
        return Ok(single_round_trip(db.get_postgres_connection_pool(), limit.before(&statement), limit)
            .await?
            .affected);
    }
    let txn = begin(db).await?;
    let result = txn.execute_raw(statement).await?;
    txn.commit().await?;
    Ok(result.rows_affected())
}

/// What PostgreSQL answered.
#[derive(Default)]
pub(crate) struct QueryOutput {
    pub(crate) rows: Vec<QueryResult>,
    pub(crate) affected: u64,
}

/// Sends `text`, into which its parameters are written, quoted, as one message of the simple protocol: it is one transaction and one
/// round trip, and prepares nothing that a pooler would have to know.
pub(crate) async fn single_round_trip(
    connection: impl PgExecutor<'_>,
    text: String,
    limit: StatementLimit,
) -> Result<QueryOutput, DbErr> {
    before_call();
    let answer = async {
        let mut answers = sqlx::raw_sql(sqlx::AssertSqlSafe(text)).fetch_many(connection);
        let mut answer = QueryOutput::default();
        while let Some(part) = answers.try_next().await.map_err(failed)? {
            match part {
                sqlx::Either::Left(done) => answer.affected += done.rows_affected(),
                sqlx::Either::Right(row) => answer.rows.push(row.into()),
            }
        }
        Ok(answer)
    };
    answered_within(limit.deadline(), answer).await
}

pub(crate) fn failed(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}
