//! The scheduler's store in the panel's database: leases, fences, cursors and the history of runs, on two tables and a half.
//!
//! A lease row says who may work, by the database's clock; a fencing row says whose work may be committed, by number alone.
//! They are two rows because every billing transaction holds the fencing row `FOR SHARE`, and a renewal must not wait for that.
//! What people ask for is in `control`, and the text of what is asked of the database in `statements`.

pub(crate) mod control;
mod dialect;
mod statements;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use billing_jobs::{Fault, Line, begin, code, execute, explained, fault};
use billing_scheduler::{
    BoxError, Claim, ClaimHint, Clock, ControlReceipt, ControlRequest, ControlState, FencingToken, JobRow,
    JobState, LateJob, Lease, Retrying, RunFilter, RunRecord, RunRow, RunStatus, Store, StoreError,
};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, QueryResult, Statement, Value};
use tokio::sync::OnceCell;

use crate::{
    database::{Database, Pool},
    metrics as measured,
};
use dialect::Dialect;
use statements::{RUN_VALUES, Sql};

/// The store of one process.
pub struct SeaOrmStore {
    db: DatabaseConnection,
    /// What a job costs that is due, and the question of each second, is mostly round trips: they go over this.
    line: Line,
    /// Of the thread that renews; opened there at the first renewal.
    renewals: OnceCell<DatabaseConnection>,
    database: Database,
    holder: String,
    ttl: Duration,
    clock: Arc<dyn Clock>,
    sql: Sql,
    /// Leases of others as they were last seen, and since when they have not changed.
    seen: Mutex<HashMap<String, Seen>>,
}

/// Somebody's lease at one look.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    fencing_token: i64,
    expires_at: i64,
    since: Duration,
}

/// A claim that succeeded.
struct Claimed {
    lease: Lease,
    /// Whether nothing can be committed under an older number any more.
    raised: bool,
}

impl SeaOrmStore {
    /// The store behind `db`, for the process named `holder`, whose leases last `ttl`.
    ///
    /// `db` is a pool that [`Database::connect`] opened: each transaction begins by forgetting prepared statements, for the sake
    /// of PgBouncer, so a pool that caches them fails on PostgreSQL with SQLSTATE 26000.
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
            line: Line::new(db.clone()),
            db,
            renewals: OnceCell::new(),
            database,
            holder: holder.into(),
            ttl,
            clock,
            sql,
            seen: Mutex::default(),
        }
    }

    /// The first step: the lease row, under a new number. Of somebody who holds it, the name.
    async fn claim(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Result<Claimed, String>, DbErr> {
        let values: [Value; 3] = [job.into(), self.holder.as_str().into(), millis(self.ttl).into()];
        if let Some(claimed) = self.try_claim(job, &self.sql.claim, values.clone()).await? {
            return Ok(Ok(claimed));
        }
        if let Some(seen) = self.stuck(job) {
            let values =
                values.clone().into_iter().chain([seen.fencing_token.into(), seen.expires_at.into()]);
            if let Some(claimed) = self.try_claim(job, &self.sql.claim_unchanged, values).await? {
                return Ok(Ok(claimed));
            }
        }
        let holder = self.statement(&self.sql.holder, [job.into()]);
        if let Some(row) = self.line.query_all(holder).await?.first() {
            self.look(job, row.try_get("", "fencing_token")?, row.try_get("", "expires_at")?);
            if let Some(holder) = row.try_get("", "holder")? {
                return Ok(Err(holder));
            }
        }
        // It is new, or free since.
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
            let rows = self.line.query_all(claim).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            return Ok(Some(Claimed { lease: self.lease(job, row)?, raised: row.try_get("", "raised")? }));
        }
        let txn = begin(&self.db).await?;
        let row = txn.query_one_raw(claim).await?;
        let lease = row.map(|row| self.lease(job, &row)).transpose()?;
        if let Some(lease) = &lease {
            // One writer: the number is raised in the same transaction.
            txn.execute_raw(self.raise(lease)).await?;
        }
        txn.commit().await?;
        Ok(lease.map(|lease| Claimed { lease, raised: true }))
    }

    /// The rows of a job that nobody has claimed yet.
    async fn insert(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<(), DbErr> {
        let txn = begin(&self.db).await?;
        let cursor = first_cursor.timestamp_micros();
        txn.execute_raw(self.statement(&self.sql.insert_state, [job.into(), cursor.into()])).await?;
        txn.execute_raw(self.statement(&self.sql.insert_fence, [job.into()])).await?;
        txn.commit().await
    }

    /// The second step: from its commit on, nothing can be committed under an older number. Waits for the old holder's
    /// transactions in flight.
    fn raise(&self, lease: &Lease) -> Statement {
        self.statement(&self.sql.raise, [lease.job.as_str().into(), lease.fencing_token.0.into()])
    }

    /// Writes a run and where that leaves its job; `last` gives the lease back with it.
    async fn write_record(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
        last: bool,
    ) -> Result<(), Refused> {
        let row = self.row(run);
        let Some(lease) = lease else {
            self.line.execute(self.statement(&self.sql.append, row)).await?;
            return Ok(());
        };
        let state =
            self.moved(lease, run, next).into_iter().chain(last.then(|| left(lease)).into_iter().flatten());
        let sql = if last { &self.sql.finish } else { &self.sql.record };
        let Some(close) = &self.sql.close else {
            // One statement, which writes nothing if the lease is lost.
            let values = row.into_iter().chain(state);
            let written = self.line.execute(self.statement(sql, values)).await?;
            return if written == 1 { Ok(()) } else { Err(Refused::LeaseLost) };
        };
        let txn = begin(&self.db).await?;
        let statements = async {
            if txn.execute_raw(self.statement(sql, state)).await?.rows_affected() != 1 {
                return Err(Refused::LeaseLost);
            }
            let request = run.request.map(|request| request.to_string());
            let values: [Value; 3] =
                [lease.job.as_str().into(), lease.fencing_token.0.into(), request.into()];
            txn.execute_raw(self.statement(close, values)).await?;
            txn.execute_raw(self.statement(&self.sql.append, row)).await?;
            Ok(())
        };
        match statements.await {
            Ok(()) => Ok(txn.commit().await?),
            Err(refused) => {
                // The first error is the one to tell; after it a rollback has nothing to add.
                let _ = txn.rollback().await;
                Err(refused)
            }
        }
    }

    /// The row of a run.
    fn row(&self, run: &RunRecord) -> [Value; RUN_VALUES] {
        let details = (!run.details.is_null()).then(|| storable_json(&run.details).to_string());
        [
            run.id.to_string().into(),
            run.job.as_str().into(),
            if run.per_node { self.holder.as_str() } else { "" }.into(),
            run.scheduled_at.timestamp_micros().into(),
            run.status.as_str().into(),
            run.cause.as_str().into(),
            i64::from(run.attempt).into(),
            run.fencing_token.0.into(),
            self.holder.as_str().into(),
            run.started_at.timestamp_micros().into(),
            run.finished_at.timestamp_micros().into(),
            run.lateness_ms().into(),
            i64::try_from(run.items).unwrap_or(i64::MAX).into(),
            run.reason.as_deref().map(storable).into(),
            run.error.as_deref().map(storable).into(),
            details.into(),
            run.range.map(|stretch| stretch.from.timestamp_micros()).into(),
            run.range.map_or(1, |stretch| i64::from(stretch.count)).into(),
            run.request.map(|request| request.to_string()).into(),
        ]
    }

    /// Where a job stands after a run.
    fn moved(&self, lease: &Lease, run: &RunRecord, next: &JobState) -> [Value; 9] {
        let retrying = next.retrying;
        [
            lease.job.as_str().into(),
            lease.fencing_token.0.into(),
            self.holder.as_str().into(),
            next.cursor.timestamp_micros().into(),
            retrying.map(|retrying| retrying.scheduled_at.timestamp_micros()).into(),
            retrying.map(|retrying| retrying.not_before.timestamp_micros()).into(),
            i64::from(retrying.map_or(0, |retrying| retrying.failed_attempts)).into(),
            matches!(run.status, RunStatus::Done | RunStatus::Retrying | RunStatus::Dead).into(),
            run.error.as_deref().map(storable).into(),
        ]
    }

    async fn record_or_finish(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
        last: bool,
    ) -> Result<(), StoreError> {
        match self.write_record(lease, run, next, last).await {
            Ok(()) => {
                measured::recorded(run);
                Ok(())
            }
            Err(Refused::LeaseLost) => {
                measured::fenced_off(&run.job);
                Err(StoreError::LeaseLost { job: run.job.clone(), fencing_token: run.fencing_token })
            }
            Err(Refused::Database(error)) if is_unique_violation(&error) => {
                Err(StoreError::AlreadyFinished { job: run.job.clone(), scheduled_at: run.scheduled_at })
            }
            Err(Refused::Database(error)) => Err(unavailable(error)),
        }
    }

    fn lease(&self, job: &str, row: &QueryResult) -> Result<Lease, DbErr> {
        let pauses: Option<String> = row.try_get("", "pauses")?;
        let requests: Option<String> = row.try_get("", "requests")?;
        let requests = control::requests(requests.as_deref())?;
        Ok(Lease {
            job: job.to_owned(),
            fencing_token: FencingToken(row.try_get("", "fencing_token")?),
            ttl: self.ttl,
            state: state(row)?,
            claim_hint: expected(row)?,
            pauses: control::pauses(pauses.as_deref())?.into_iter().map(|(_, pause)| pause).collect(),
            requests,
        })
    }

    /// Remembers somebody's lease as it is now.
    fn look(&self, job: &str, fencing_token: i64, expires_at: i64) {
        let since = self.clock.monotonic();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let unchanged = seen
            .get(job)
            .is_some_and(|last| last.fencing_token == fencing_token && last.expires_at == expires_at);
        if !unchanged {
            seen.insert(job.to_owned(), Seen { fencing_token, expires_at, since });
        }
    }

    /// Somebody's lease that nobody has renewed for twice its length by our own clock: the database's was set back.
    fn stuck(&self, job: &str) -> Option<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.monotonic();
        seen.get(job).filter(|seen| now.saturating_sub(seen.since) > self.ttl * 2).cloned()
    }

    fn dialect(&self) -> Dialect {
        Dialect::of(self.db.get_database_backend())
    }

    fn statement(&self, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
        Statement::from_sql_and_values(self.db.get_database_backend(), sql, values)
    }
}

/// What is expected of a job whose lease is given back.
fn left(lease: &Lease) -> [Value; 4] {
    let plan = lease.claim_hint.as_ref();
    let micros = |at: Option<DateTime<Utc>>| at.map(|at| at.timestamp_micros());
    [
        plan.map(|plan| plan.schedule.as_str()).into(),
        plan.and_then(|plan| micros(plan.next_at)).into(),
        plan.and_then(|plan| micros(plan.late_at)).into(),
        plan.and_then(|plan| micros(plan.stuck_at)).into(),
    ]
}

/// A plugin's text as PostgreSQL takes it, which has no place for a NUL: an occurrence must not repeat for ever because of one.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn storable_json(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::String(text) => Value::String(storable(text)),
        Value::Array(values) => values.iter().map(storable_json).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (storable(key), storable_json(value))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// Why a record was rolled back.
enum Refused {
    LeaseLost,
    Database(DbErr),
}

impl From<DbErr> for Refused {
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
            // Another claim of the same row, or a new job's first one, was faster.
            Err(error) if matches!(fault(&error), Fault::Conflict | Fault::Rows) => {
                return Ok(Claim::Busy { holder: "another daemon".to_owned() });
            }
            Err(error) => return Err(unavailable(error)),
        };
        if raised {
            measured::claimed(job);
            return Ok(Claim::Held(lease));
        }
        // Somebody works under an older number.
        match execute(&self.db, self.raise(&lease)).await {
            Ok(1) => {
                measured::claimed(job);
                Ok(Claim::Held(lease))
            }
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
        let open = || self.database.connect(Pool::Single);
        let db = self.renewals.get_or_try_init(open).await.map_err(|error| unavailable(error.source))?;
        let values: [Value; 4] = [
            lease.job.as_str().into(),
            lease.fencing_token.0.into(),
            self.holder.as_str().into(),
            millis(self.ttl).into(),
        ];
        let renewed = execute(db, self.statement(&self.sql.renew, values)).await.map_err(unavailable)?;
        if renewed == 1 { Ok(()) } else { Err(lost(lease)) }
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
        let values = holder.into_iter().chain(left(lease));
        self.line.execute(self.statement(&self.sql.release, values)).await.map_err(unavailable)?;
        Ok(())
    }

    async fn control_state(&self, known: Option<i64>) -> Result<Option<ControlState>, StoreError> {
        control::wishes(&self.line, self.dialect(), known).await.map_err(unavailable)
    }

    async fn request(&self, request: &ControlRequest) -> Result<ControlReceipt, StoreError> {
        control::request(&self.db, request).await.map_err(unavailable)
    }

    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        control::jobs(&self.db).await.map_err(unavailable)
    }

    async fn late(&self, now: DateTime<Utc>) -> Result<Vec<LateJob>, StoreError> {
        control::late(&self.line, self.dialect(), now).await.map_err(unavailable)
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
        control::runs(&self.db, filter).await.map_err(unavailable)
    }
}

/// Where the schedule of a job stands, from its row.
fn state(row: &QueryResult) -> Result<JobState, DbErr> {
    let scheduled_at: Option<i64> = row.try_get("", "retry_scheduled_at")?;
    let not_before: Option<i64> = row.try_get("", "retry_not_before")?;
    let failed_attempts: i64 = row.try_get("", "failed_attempts")?;
    let retrying = match scheduled_at.zip(not_before) {
        None => None,
        Some((scheduled_at, not_before)) => Some(Retrying {
            scheduled_at: instant(scheduled_at)?,
            not_before: instant(not_before)?,
            failed_attempts: u32::try_from(failed_attempts).unwrap_or(u32::MAX),
        }),
    };
    Ok(JobState { cursor: instant(row.try_get("", "cursor_at")?)?, retrying })
}

/// What is expected of a job, from its row.
fn expected(row: &QueryResult) -> Result<Option<ClaimHint>, DbErr> {
    let Some(schedule) = row.try_get("", "schedule")? else { return Ok(None) };
    let at = |column| row.try_get::<Option<i64>>("", column)?.map(instant).transpose();
    Ok(Some(ClaimHint {
        schedule,
        next_at: at("next_at")?,
        late_at: at("late_at")?,
        stuck_at: at("stuck_at")?,
    }))
}

fn unavailable(error: DbErr) -> StoreError {
    measured::failed(fault(&error));
    StoreError::Unavailable(BoxError::from(Unanswered(error)))
}

/// What kept the database from answering; it says what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{}", explained(.0))]
pub(crate) struct Unanswered(#[source] pub(crate) DbErr);

fn lost(lease: &Lease) -> StoreError {
    measured::fenced_off(&lease.job);
    StoreError::LeaseLost { job: lease.job.clone(), fencing_token: lease.fencing_token }
}

fn is_unique_violation(error: &DbErr) -> bool {
    matches!(code(error).as_deref(), Some("23505" | "1555" | "2067"))
}

fn instant(micros: i64) -> Result<DateTime<Utc>, DbErr> {
    DateTime::from_timestamp_micros(micros).ok_or_else(|| DbErr::Type(format!("{micros} is no time")))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
