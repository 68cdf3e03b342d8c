//! The implementation of the store contract: claim, raise, renew, record, finish, release.
//!
//! The lease row decides who may work, by the database's clock; the fencing row decides whose work may be committed, by its number
//! alone. They are two rows because every transaction of a job may hold the fencing row `FOR SHARE`, and a renewal must not wait for that.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    BoxError, Claim, Clock, ControlReceipt, ControlRequest, FencingToken, JobRow, JobState, LateJob, Lease,
    QueueStore, RunFilter, RunRecord, RunRow, Store, StoreError, StorePoll,
};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, QueryResult, Statement, Value};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{
    connection::DedicatedConnection,
    control,
    database::{Database, Pool},
    dialect::Dialect,
    error_class::{ErrorClass, classify, code, with_help},
    rows::{self, millis, release_values},
    statements::Sql,
    sync::lock,
    transaction::{begin, execute},
};

/// The store of one process. Several processes may use the same database.
pub struct SeaOrmStore {
    pub(crate) db: DatabaseConnection,
    /// For the statements of lease cycles and polls, whose cost is mostly round trips.
    dedicated: DedicatedConnection,
    /// The connection of the thread that renews leases, opened there at the first renewal.
    renewals: OnceCell<DatabaseConnection>,
    pub(crate) database: Database,
    pub(crate) holder: String,
    pub(crate) ttl: Duration,
    clock: Arc<dyn Clock>,
    sql: Sql,
    /// The leases of other processes as they were last read.
    observed: Mutex<HashMap<String, ObservedLease>>,
    /// The id of this store, which its claims contain: other processes may have the same name.
    id: Uuid,
    /// The jobs whose lease this store may have without using it: a release failed, or a claim whose result is unknown.
    unused: Mutex<HashSet<String>>,
}

/// A lease of another process, as it was last read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ObservedLease {
    fencing_token: i64,
    expires_at: i64,
    /// When this state was first read, by the monotonic clock.
    since: Duration,
}

/// A claim that succeeded.
struct Claimed {
    lease: Lease,
    /// Whether the fencing row has the new token, so that nothing can be committed under an older one.
    raised: bool,
}

impl SeaOrmStore {
    /// Returns the store in `db` for the process named `holder`, whose leases last `ttl`. `database` is opened once more for the
    /// renewals.
    ///
    /// `db` must be a pool that [`Database::connect`] opened: each transaction discards prepared statements, because of PgBouncer, so
    /// a pool that caches them fails on PostgreSQL with SQLSTATE 26000.
    #[must_use]
    pub fn new(
        db: DatabaseConnection,
        database: Database,
        holder: impl Into<String>,
        ttl: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let sql = Sql::of(db.get_database_backend());
        #[cfg(feature = "testing")]
        let sql = sql.tested();
        Self {
            dedicated: DedicatedConnection::new(db.clone(), &database),
            db,
            renewals: OnceCell::new(),
            database,
            holder: holder.into(),
            ttl,
            clock,
            sql,
            observed: Mutex::default(),
            id: Uuid::new_v4(),
            unused: Mutex::default(),
        }
    }

    /// Returns the connection of the polls, for other short statements of this process.
    #[must_use]
    pub fn connection(&self) -> &DedicatedConnection {
        &self.dedicated
    }

    /// Returns the connection of the thread that renews leases and claims.
    pub(crate) async fn renewal_connection(&self) -> Result<&DatabaseConnection, StoreError> {
        let open = || self.database.connect(Pool::Single);
        let db = self.renewals.get_or_try_init(open).await.map_err(|error| unavailable(error.source))?;
        self.dedicated.lead(db);
        Ok(db)
    }

    /// Claims the lease row under a new token. Returns the name of the holder if another process has the lease.
    async fn claim(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Result<Claimed, String>, DbErr> {
        let may_be_ours = lock(&self.unused).contains(job);
        let claimed = self.claim_or_holder(job, first_cursor, may_be_ours).await;
        if claimed.is_ok() {
            lock(&self.unused).remove(job);
        } else {
            lock(&self.unused).insert(job.to_owned());
        }
        claimed
    }

    async fn claim_or_holder(
        &self,
        job: &str,
        first_cursor: DateTime<Utc>,
        may_be_ours: bool,
    ) -> Result<Result<Claimed, String>, DbErr> {
        let id = self.id.to_string();
        let values: [Value; 4] =
            [job.into(), self.holder.as_str().into(), millis(self.ttl).into(), id.as_str().into()];
        if let Some(claimed) = self.try_claim(job, &self.sql.claim, values.clone()).await? {
            return Ok(Ok(claimed));
        }
        let claim_unchanged = async |fencing_token: i64, expires_at: i64| {
            let values = values.clone().into_iter().chain([fencing_token.into(), expires_at.into()]);
            self.try_claim(job, &self.sql.claim_unchanged, values).await
        };
        if let Some(stale) = self.stale_lease(job)
            && let Some(claimed) = claim_unchanged(stale.fencing_token, stale.expires_at).await?
        {
            return Ok(Ok(claimed));
        }
        let holder = self.statement(&self.sql.holder, [job.into()]);
        if let Some(row) = self.dedicated.query_all(holder).await?.first() {
            let (fencing_token, expires_at) =
                (row.try_get("", "fencing_token")?, row.try_get("", "expires_at")?);
            let claimed_by: Option<String> = row.try_get("", "claimed_by")?;
            if may_be_ours
                && claimed_by.is_some_and(|by| by == id)
                && let Some(claimed) = claim_unchanged(fencing_token, expires_at).await?
            {
                return Ok(Ok(claimed));
            }
            self.observe(job, fencing_token, expires_at);
            if let Some(holder) = row.try_get("", "holder")? {
                return Ok(Err(holder));
            }
        }
        // The job is new, or its lease has become free.
        self.insert(job, first_cursor).await?;
        let claimed = self.try_claim(job, &self.sql.claim, values).await?;
        Ok(claimed.ok_or_else(|| "another daemon".to_owned()))
    }

    async fn try_claim(
        &self,
        job: &str,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Option<Claimed>, DbErr> {
        let claim = self.statement(sql, values);
        if self.db.get_database_backend() != DbBackend::Sqlite {
            let rows = self.dedicated.query_all(claim).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            return Ok(Some(Claimed { lease: self.lease(job, row)?, raised: row.try_get("", "raised")? }));
        }
        let txn = begin(&self.db).await?;
        let row = txn.query_one_raw(claim).await?;
        let lease = row.map(|row| self.lease(job, &row)).transpose()?;
        if let Some(lease) = &lease {
            // SQLite has one writer: the token is raised in the same transaction.
            txn.execute_raw(self.raise(lease)).await?;
        }
        txn.commit().await?;
        Ok(lease.map(|lease| Claimed { lease, raised: true }))
    }

    /// Inserts the rows of a job that was never claimed.
    async fn insert(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<(), DbErr> {
        let txn = begin(&self.db).await?;
        let cursor = first_cursor.timestamp_micros();
        txn.execute_raw(self.statement(&self.sql.insert_state, [job.into(), cursor.into()])).await?;
        txn.execute_raw(self.statement(&self.sql.insert_fencing, [job.into()])).await?;
        txn.commit().await
    }

    /// Returns the statement that raises the fencing token: after its commit, nothing can be committed under an older one. It waits
    /// for the previous holder's transactions in progress.
    fn raise(&self, lease: &Lease) -> Statement {
        self.statement(&self.sql.raise, [lease.job.as_str().into(), lease.fencing_token.0.into()])
    }

    /// Writes a run and the job's state after it; releases the lease as well if it is the `last` record.
    async fn write_record(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
        last: bool,
    ) -> Result<(), WriteError> {
        let row = rows::run_values(&self.holder, run);
        let Some(lease) = lease else {
            self.dedicated.execute(self.statement(&self.sql.append, row)).await?;
            return Ok(());
        };
        let state = rows::update_values(&self.holder, lease, run, next)
            .into_iter()
            .chain(last.then(|| release_values(lease)).into_iter().flatten());
        let sql = if last { &self.sql.finish } else { &self.sql.record };
        let Some(close) = &self.sql.close else {
            // One statement, which writes nothing if the lease is lost.
            let values = row.into_iter().chain(state);
            let written = self.dedicated.execute(self.statement(sql, values)).await?;
            return if written == 1 { Ok(()) } else { Err(WriteError::LeaseLost) };
        };
        let txn = begin(&self.db).await?;
        let statements = async {
            if txn.execute_raw(self.statement(sql, state)).await?.rows_affected() != 1 {
                return Err(WriteError::LeaseLost);
            }
            let request = run.request_id.map(|request| request.to_string());
            let values: [Value; 3] =
                [lease.job.as_str().into(), lease.fencing_token.0.into(), request.into()];
            txn.execute_raw(self.statement(close, values)).await?;
            txn.execute_raw(self.statement(&self.sql.append, row)).await?;
            Ok(())
        };
        match statements.await {
            Ok(()) => Ok(txn.commit().await?),
            Err(error) => {
                // The first error is the one to report; a failed rollback adds nothing.
                let _ = txn.rollback().await;
                Err(error)
            }
        }
    }

    async fn record_or_finish(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
        last: bool,
    ) -> Result<(), StoreError> {
        match self.write_record(lease, run, next, last).await {
            Ok(()) => Ok(()),
            Err(WriteError::LeaseLost) => {
                Err(StoreError::LeaseLost { job: run.job.clone(), fencing_token: run.fencing_token })
            }
            Err(WriteError::Database(error)) if is_unique_violation(&error) => {
                Err(StoreError::AlreadyFinished { job: run.job.clone(), scheduled_at: run.scheduled_at })
            }
            Err(WriteError::Database(error)) => Err(unavailable(error)),
        }
    }

    fn lease(&self, job: &str, row: &QueryResult) -> Result<Lease, DbErr> {
        let pauses: Option<String> = row.try_get("", "pauses")?;
        let requests: Option<String> = row.try_get("", "requests")?;
        let requests = rows::requests(requests.as_deref())?;
        Ok(Lease {
            job: job.to_owned(),
            fencing_token: FencingToken(row.try_get("", "fencing_token")?),
            ttl: self.ttl,
            state: rows::state(row)?,
            claim_hint: rows::claim_hint(row)?,
            pauses: rows::pauses(pauses.as_deref())?.into_iter().map(|(_, pause)| pause).collect(),
            requests,
        })
    }

    /// Records the current lease of another process.
    fn observe(&self, job: &str, fencing_token: i64, expires_at: i64) {
        let since = self.clock.monotonic();
        let mut observed = lock(&self.observed);
        let unchanged = observed
            .get(job)
            .is_some_and(|last| last.fencing_token == fencing_token && last.expires_at == expires_at);
        if !unchanged {
            observed.insert(job.to_owned(), ObservedLease { fencing_token, expires_at, since });
        }
    }

    /// Returns the lease of another process if it has not changed for two lifetimes by the clock of this process: the clock of the
    /// database was set back.
    fn stale_lease(&self, job: &str) -> Option<ObservedLease> {
        let observed = lock(&self.observed);
        let now = self.clock.monotonic();
        observed.get(job).filter(|lease| now.saturating_sub(lease.since) > self.ttl * 2).cloned()
    }

    pub(crate) fn dialect(&self) -> Dialect {
        Dialect::of(self.db.get_database_backend())
    }

    pub(crate) fn statement(&self, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
        Statement::from_sql_and_values(self.db.get_database_backend(), sql, values)
    }
}

/// Why a record was not written.
enum WriteError {
    LeaseLost,
    Database(DbErr),
}

impl From<DbErr> for WriteError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

#[async_trait]
impl Store for SeaOrmStore {
    async fn acquire(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim, StoreError> {
        let Claimed { lease, raised } = match self.claim(job, first_cursor).await {
            Ok(Ok(claimed)) => claimed,
            Ok(Err(holder)) => return Ok(Claim::Busy { holder }),
            // Another process claimed or inserted the same row first.
            Err(error) if matches!(classify(&error), ErrorClass::Conflict | ErrorClass::Rows) => {
                return Ok(Claim::Busy { holder: "another daemon".to_owned() });
            }
            Err(error) => return Err(unavailable(error)),
        };
        if raised {
            return Ok(Claim::Held(lease));
        }
        // Work runs under an older token.
        match execute(&self.db, self.raise(&lease)).await {
            Ok(1) => Ok(Claim::Held(lease)),
            Ok(_) => {
                self.release(&lease).await?;
                Ok(Claim::Busy { holder: "another daemon".to_owned() })
            }
            Err(error) => {
                self.release(&lease).await?;
                Err(unavailable(error))
            }
        }
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let db = self.renewal_connection().await?;
        let values: [Value; 4] = [
            lease.job.as_str().into(),
            lease.fencing_token.0.into(),
            self.holder.as_str().into(),
            millis(self.ttl).into(),
        ];
        let renewed = execute(db, self.statement(&self.sql.renew, values)).await.map_err(unavailable)?;
        if renewed == 1 { Ok(()) } else { Err(lease.lost()) }
    }

    async fn record(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
    ) -> Result<(), StoreError> {
        self.record_or_finish(lease, run, next, false).await
    }

    async fn finish(&self, lease: &Lease, run: &RunRecord, next: &JobState) -> Result<(), StoreError> {
        self.record_or_finish(Some(lease), run, next, true).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let holder: [Value; 3] =
            [lease.job.as_str().into(), lease.fencing_token.0.into(), self.holder.as_str().into()];
        let values = holder.into_iter().chain(release_values(lease));
        if let Err(error) = self.dedicated.execute(self.statement(&self.sql.release, values)).await {
            lock(&self.unused).insert(lease.job.clone());
            return Err(unavailable(error));
        }
        Ok(())
    }

    async fn poll(&self, known: Option<i64>) -> Result<StorePoll, StoreError> {
        control::poll(&self.dedicated, self.dialect(), known).await.map_err(unavailable)
    }

    async fn request(&self, request: &ControlRequest) -> Result<ControlReceipt, StoreError> {
        control::submit_request(&self.db, request).await.map_err(unavailable)
    }

    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        control::read_jobs(&self.db).await.map_err(unavailable)
    }

    async fn late(&self, now: DateTime<Utc>) -> Result<Vec<LateJob>, StoreError> {
        control::late(&self.dedicated, self.dialect(), now).await.map_err(unavailable)
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
        control::read_runs(&self.db, filter).await.map_err(unavailable)
    }

    fn queue(self: Arc<Self>) -> Option<Arc<dyn QueueStore>> {
        Some(self)
    }
}

pub(crate) fn unavailable(error: DbErr) -> StoreError {
    StoreError::Unavailable(BoxError::from(QueryFailed(error)))
}

/// A failed query: the source of [`StoreError::Unavailable`]. The message includes the help for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{}", with_help(.0))]
pub struct QueryFailed(#[source] pub DbErr);

pub(crate) fn is_unique_violation(error: &DbErr) -> bool {
    matches!(code(error).as_deref(), Some("23505" | "1555" | "2067"))
}
