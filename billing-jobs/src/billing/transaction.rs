//! The transaction of a batch: every write has an expected number of rows.

use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, QueryResult, Statement};
use tracing::Instrument as _;

use crate::spans;
use billing_store::{Transaction, begin, begin_deferred};

/// Why a posting must be rolled back.
#[derive(Debug)]
pub(super) enum PostError {
    Database(DbErr),
    /// A statement changed another number of rows than expected: what was read has changed since, or a policy hides rows.
    Count {
        table: &'static str,
        expected: usize,
        found: u64,
    },
}

impl From<DbErr> for PostError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

/// When a transaction on SQLite becomes the only writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writes {
    /// SQLite's write lock is taken with BEGIN.
    AtOnce,
    /// With its first write, so that others can write while it reads.
    AfterReads,
}

/// The transaction of one batch.
pub(super) struct BatchTransaction(Transaction);

impl BatchTransaction {
    pub(super) async fn begin(db: &DatabaseConnection, writes: Writes) -> Result<Self, DbErr> {
        match writes {
            Writes::AtOnce => begin(db).await,
            Writes::AfterReads => begin_deferred(db).await,
        }
        .map(Self)
    }

    #[cfg(not(feature = "testing"))]
    pub(super) async fn read_under_locks(
        &self,
        lock: Option<Statement>,
        due: Statement,
    ) -> Result<[Vec<QueryResult>; 2], DbErr> {
        read_under_locks(self, lock, due).await
    }

    #[cfg(not(feature = "testing"))]
    pub(super) async fn write(
        &self,
        table: &'static str,
        expected: usize,
        statements: Vec<Statement>,
    ) -> Result<(), PostError> {
        write(self, table, expected, statements).await
    }

    pub(super) async fn commit(self) -> Result<(), DbErr> {
        self.0.commit().await
    }

    pub(super) async fn rollback(self) -> Result<(), DbErr> {
        self.0.rollback().await
    }
}

impl Connection for BatchTransaction {
    fn backend(&self) -> DbBackend {
        self.0.get_database_backend()
    }

    async fn query_one(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.0.query_one_raw(statement).await
    }

    async fn query_all(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.0.query_all_raw(statement).await
    }

    async fn execute(&self, statement: Statement) -> Result<u64, DbErr> {
        Ok(self.0.execute_raw(statement).await?.rows_affected())
    }
}

/// What sends the statements of a batch. The fault campaign decorates it.
pub(super) trait Connection {
    fn backend(&self) -> DbBackend;
    /// Returns the first row.
    async fn query_one(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr>;
    /// Returns all rows of a query.
    async fn query_all(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr>;
    /// Returns how many rows changed.
    async fn execute(&self, statement: Statement) -> Result<u64, DbErr>;
}

/// Locks wallets, if `lock` is given, and then reads the instances of `due`. Returns the rows of both.
pub(super) async fn read_under_locks(
    connection: &impl Connection,
    lock: Option<Statement>,
    due: Statement,
) -> Result<[Vec<QueryResult>; 2], DbErr> {
    let step = |doing| spans::step(connection.backend(), doing);
    let wallets = match lock {
        Some(lock) => connection.query_all(lock).instrument(step("lock wallets")).await?,
        None => Vec::new(),
    };
    Ok([wallets, connection.query_all(due).instrument(step("read due instances")).await?])
}

/// Executes `statements`, which write `expected` rows of `table`.
pub(super) async fn write(
    connection: &impl Connection,
    table: &'static str,
    expected: usize,
    statements: Vec<Statement>,
) -> Result<(), PostError> {
    let mut found = 0;
    for statement in statements {
        found += connection.execute(statement).await?;
    }
    if found == expected as u64 { Ok(()) } else { Err(PostError::Count { table, expected, found }) }
}
