//! The lock of a migrator. Concurrent migrators fail on every database, so each runs in one transaction that excludes others.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, SqliteTransactionMode, TransactionOptions,
    TransactionTrait,
};

/// The number is "billing" in ASCII. The lock ends with the transaction, so that it also works behind PgBouncer.
/// A stricter default isolation level would keep the snapshot from before the wait.
/// A migrator may wait long for another one, but not for a lock on a table, because the panel would queue behind it. An index on a
/// large table of the panel takes longer than limits that a role may have.
const LOCK: &str = "
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    DEALLOCATE ALL;
    SET LOCAL statement_timeout = 0;
    SET LOCAL idle_in_transaction_session_timeout = '60s';
    SET LOCAL lock_timeout = '60s';
    SELECT pg_advisory_xact_lock(27700462113877607);
    SET LOCAL lock_timeout = '5s'";

/// Begins a transaction that only reads. A server that another client of a pooler used may still have statements prepared under the
/// names that sqlx uses.
pub(super) async fn begin_read<'c>(
    db: impl IntoSchemaManagerConnection<'c>,
) -> Result<DatabaseTransaction, DbErr> {
    let transaction = db.into_database_executor().begin().await?;
    if transaction.get_database_backend() == DbBackend::Postgres {
        transaction.execute_unprepared("DEALLOCATE ALL").await?;
    }
    Ok(transaction)
}

/// Begins a transaction when no other migrator is running. Schema changes are transactional on both databases, so a failure leaves
/// nothing behind.
pub(super) async fn begin<'c>(
    db: impl IntoSchemaManagerConnection<'c>,
) -> Result<DatabaseTransaction, DbErr> {
    let db = db.into_database_executor();
    let mut options = TransactionOptions::default();
    match db.get_database_backend() {
        DbBackend::Postgres => {}
        // This is the lock on SQLite; sqlx waits for it five seconds.
        DbBackend::Sqlite => options.sqlite_transaction_mode = Some(SqliteTransactionMode::Immediate),
        _ => return Err(unsupported()),
    }
    let transaction = db.begin_with_options(options).await?;
    if transaction.get_database_backend() == DbBackend::Postgres {
        transaction.execute_unprepared(LOCK).await?;
    }
    Ok(transaction)
}

pub(super) fn unsupported() -> DbErr {
    DbErr::Migration("cannot migrate this database: only PostgreSQL and SQLite are supported".to_owned())
}
