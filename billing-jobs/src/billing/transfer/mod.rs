//! The handover of billing from and to the panel. No biller runs meanwhile.

mod adopt;
mod release;

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, QueryResult};

use super::sql::Statements;
use crate::BILLING_JOB;
use billing_store::{SQLITE_NOW, Transaction, begin_command, statement};

pub use self::{
    adopt::{Adoption, PriceDifference},
    release::Release,
};

/// Why billing was not handed over. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// A run is in progress.
    #[error("billing is being run by {holder}: try again when it is done")]
    Busy {
        /// Which daemon, or command.
        holder: String,
    },
    /// A daemon would resume billing.
    #[error("the daemon {instance} is alive and would continue to bill: stop it first")]
    Alive {
        /// Its row in `billing_daemon_status`.
        instance: String,
    },
    /// The database failed.
    #[error("cannot {doing}: {source}")]
    Database {
        /// The attempted step, as a verb phrase.
        doing: &'static str,
        /// The error of the database.
        source: DbErr,
    },
}

impl HandoverError {
    pub(super) fn database(doing: &'static str) -> impl Fn(DbErr) -> Self {
        move |source| Self::Database { doing, source }
    }
}

/// Begins a transaction, if no run is in progress. Until it ends, no daemon can commit a batch.
pub(super) async fn begin_alone(
    db: &DatabaseConnection,
    sql: &Statements,
) -> Result<Transaction, HandoverError> {
    let failed = HandoverError::database("keep other daemons from billing");
    let txn = begin_command(db).await.map_err(&failed)?;
    if let Some(settings) = &sql.handover_settings {
        txn.query_one_raw(statement(&txn, settings, [])).await.map_err(&failed)?;
    }
    let row = "INSERT INTO scheduler_fencing (job) VALUES ($1) ON CONFLICT DO NOTHING";
    txn.execute_raw(statement(&txn, row, [BILLING_JOB.into()])).await.map_err(&failed)?;
    let (lock, now) = match txn.get_database_backend() {
        DbBackend::Sqlite => ("", SQLITE_NOW),
        _ => ("FOR NO KEY UPDATE", "now()"),
    };
    let fencing_token = format!("SELECT fencing_token FROM scheduler_fencing WHERE job = $1 {lock}");
    txn.query_one_raw(statement(&txn, &fencing_token, [BILLING_JOB.into()])).await.map_err(&failed)?;
    let lease = format!(
        "SELECT holder FROM scheduler_jobs WHERE job = $1 AND holder IS NOT NULL AND expires_at > {now}"
    );
    let lease = txn.query_one_raw(statement(&txn, &lease, [BILLING_JOB.into()])).await.map_err(&failed)?;
    match lease {
        None => Ok(txn),
        Some(row) => {
            txn.rollback().await.map_err(&failed)?;
            Err(HandoverError::Busy { holder: row.try_get("", "holder").map_err(&failed)? })
        }
    }
}

/// All rows of a query without parameters.
pub(super) async fn all(txn: &Transaction, sql: &str) -> Result<Vec<QueryResult>, DbErr> {
    txn.query_all_raw(statement(txn, sql, [])).await
}
