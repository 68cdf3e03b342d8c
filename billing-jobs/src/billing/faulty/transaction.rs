//! The transaction of a batch with the faults that the environment requests.

use std::{
    process::abort,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use sea_orm::{DatabaseConnection, DbBackend, DbErr, QueryResult, Statement};

use crate::{
    billing::transaction::{BatchTransaction, Connection, PostError, Writes, read_under_locks, write},
    fault_injection::{abort_at, linger, mutated},
};

/// The transaction that a failed batch left open for its next attempt.
static LEFT_OPEN: Mutex<Option<BatchTransaction>> = Mutex::new(None);

/// A transaction that counts its statements and can leave out safeguards.
pub(in crate::billing) struct FaultyTransaction {
    inner: BatchTransaction,
    db: DatabaseConnection,
    statements: AtomicU64,
    /// Whether it continues the transaction of an attempt that failed.
    continued: bool,
    /// Whether a statement failed, after which PostgreSQL refuses all others.
    failed: AtomicBool,
    /// The writes that a mutation moves to separate transactions.
    separate: Mutex<Vec<Vec<Statement>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultyTransaction {
    pub(in crate::billing) async fn begin(db: &DatabaseConnection, writes: Writes) -> Result<Self, DbErr> {
        linger().await;
        let left_open = locked(&LEFT_OPEN).take();
        let continued = left_open.is_some();
        let statements = AtomicU64::new(0);
        count(&statements);
        let inner = match left_open {
            Some(transaction) => transaction,
            None => BatchTransaction::begin(db, writes).await?,
        };
        let (failed, separate) = (AtomicBool::new(false), Mutex::default());
        Ok(Self { inner, db: db.clone(), statements, continued, failed, separate })
    }

    pub(in crate::billing) async fn read_under_locks(
        &self,
        lock: Option<Statement>,
        due: Statement,
    ) -> Result<[Vec<QueryResult>; 2], DbErr> {
        let rows = if mutated("stale-due-list") {
            let early = self.query_all(due).await?;
            linger().await;
            let wallets = match lock {
                Some(lock) => self.query_all(lock).await?,
                None => Vec::new(),
            };
            [wallets, early]
        } else {
            read_under_locks(self, lock, due).await?
        };
        linger().await;
        Ok(rows)
    }

    pub(in crate::billing) async fn write(
        &self,
        table: &'static str,
        expected: usize,
        statements: Vec<Statement>,
    ) -> Result<(), PostError> {
        let is_separate = match table {
            "vps_billing_cycles" => mutated("cycles-apart"),
            "wallets" => mutated("debit-apart"),
            _ => false,
        };
        if is_separate {
            locked(&self.separate).push(statements);
            return Ok(());
        }
        if table == "vps_instances" && mutated("anchor-stays") {
            return Ok(());
        }
        match write(self, table, expected, statements).await {
            Err(PostError::Count { .. }) if mutated("no-count-check") => Ok(()),
            result => result,
        }
    }

    /// Commits, and then performs the writes that a mutation moved to separate transactions.
    pub(in crate::billing) async fn commit(self) -> Result<(), DbErr> {
        count(&self.statements);
        self.inner.commit().await?;
        let separate = std::mem::take(&mut *locked(&self.separate));
        for statements in separate {
            linger().await;
            let transaction = BatchTransaction::begin(&self.db, Writes::AtOnce).await?;
            for statement in statements {
                transaction.execute(statement).await?;
            }
            transaction.commit().await?;
        }
        Ok(())
    }

    pub(in crate::billing) async fn rollback(self) -> Result<(), DbErr> {
        let usable = !self.continued && !self.failed.load(Ordering::Relaxed);
        if usable && mutated("retry-without-rollback") {
            *locked(&LEFT_OPEN) = Some(self.inner);
            return Ok(());
        }
        self.inner.rollback().await
    }

    fn noted<T>(&self, result: Result<T, DbErr>) -> Result<T, DbErr> {
        self.failed.fetch_or(result.is_err(), Ordering::Relaxed);
        result
    }
}

impl Connection for FaultyTransaction {
    fn backend(&self) -> DbBackend {
        self.inner.backend()
    }

    async fn query_one(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        count(&self.statements);
        self.noted(self.inner.query_one(statement).await)
    }

    async fn query_all(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        count(&self.statements);
        self.noted(self.inner.query_all(statement).await)
    }

    async fn execute(&self, statement: Statement) -> Result<u64, DbErr> {
        count(&self.statements);
        self.noted(self.inner.execute(statement).await)
    }
}

/// Counts a statement that is about to be sent; the process aborts before the requested one.
fn count(statements: &AtomicU64) {
    let number = statements.fetch_add(1, Ordering::Relaxed) + 1;
    if abort_at() == Some(number) {
        abort();
    }
}
