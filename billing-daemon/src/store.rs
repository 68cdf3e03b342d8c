//! The scheduler's store in the panel's database: leases, fences, cursors and the history of runs, on two tables and a half.
//!
//! A lease row says who may work, by the database's clock; a fence row says whose work may be committed, by number alone.
//! They are two rows because every billing transaction holds the fence row `FOR SHARE`, and a renewal must not wait for that.
//! What people ask for is in `control`.

pub(crate) mod control;
mod dialect;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use billing_jobs::{Fault, begin, code, execute, explained, fault};
use billing_scheduler::{
    BoxError, Claim, Clock, FencingToken, JobRow, JobState, Late, Lease, Plan, Receipt, Request, Retrying,
    RunFilter, RunRecord, RunRow, RunStatus, Store, StoreError, Wishes,
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult, Statement, Value,
};
use tokio::sync::OnceCell;

use crate::{
    database::{Database, Pool},
    metrics as measured,
};
use dialect::Dialect;

/// The store of one process.
pub struct SeaOrmStore {
    db: DatabaseConnection,
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
    fence: i64,
    expires_at: i64,
    since: Duration,
}

struct Sql {
    insert_state: String,
    insert_fence: String,
    claim: String,
    claim_unchanged: String,
    holder: String,
    raise: String,
    renew: String,
    record: String,
    close: Option<String>,
    append: String,
    release: String,
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

    /// The first step: the lease row, under a new number.
    async fn claim(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim, DbErr> {
        let txn = begin(&self.db).await?;
        let ttl_ms = millis(self.ttl);
        let values: [Value; 3] = [job.into(), self.holder.as_str().into(), ttl_ms.into()];
        let mut row = txn.query_one_raw(self.statement(&self.sql.claim, values.clone())).await?;
        if row.is_none() {
            let cursor = first_cursor.timestamp_micros();
            txn.execute_raw(self.statement(&self.sql.insert_state, [job.into(), cursor.into()])).await?;
            txn.execute_raw(self.statement(&self.sql.insert_fence, [job.into()])).await?;
            row = txn.query_one_raw(self.statement(&self.sql.claim, values.clone())).await?;
        }
        if row.is_none()
            && let Some(seen) = self.stuck(job)
        {
            let values = values.into_iter().chain([seen.fence.into(), seen.expires_at.into()]);
            row = txn.query_one_raw(self.statement(&self.sql.claim_unchanged, values)).await?;
        }
        let claim = if let Some(row) = row {
            let lease = self.lease(job, &row)?;
            if txn.get_database_backend() == DbBackend::Sqlite {
                // One writer: the number is raised in the same transaction.
                self.raise(&txn, &lease).await?;
            }
            Claim::Held(lease)
        } else {
            let row = txn.query_one_raw(self.statement(&self.sql.holder, [job.into()])).await?;
            let row = row.ok_or_else(|| DbErr::RecordNotFound(format!("the state of job `{job}`")))?;
            self.look(job, row.try_get("", "fence")?, row.try_get("", "expires_at")?);
            Claim::Busy { holder: row.try_get("", "holder")? }
        };
        txn.commit().await?;
        Ok(claim)
    }

    /// The second step: from its commit on, nothing can be committed under an older number. Waits for the old holder's
    /// transactions in flight.
    async fn raise(&self, txn: &DatabaseTransaction, lease: &Lease) -> Result<bool, DbErr> {
        let values: [Value; 2] = [lease.job.as_str().into(), lease.fence.0.into()];
        Ok(txn.execute_raw(self.statement(&self.sql.raise, values)).await?.rows_affected() == 1)
    }

    async fn raise_alone(&self, lease: &Lease) -> Result<bool, DbErr> {
        let txn = begin(&self.db).await?;
        let raised = self.raise(&txn, lease).await?;
        txn.commit().await?;
        Ok(raised)
    }

    async fn write_record(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
    ) -> Result<(), Refused> {
        let txn = begin(&self.db).await?;
        let refused = match self.fill_record(&txn, lease, run, next).await {
            Ok(()) => return Ok(txn.commit().await?),
            Err(refused) => refused,
        };
        // The first error is the one to tell; after it a rollback has nothing to add.
        let _ = txn.rollback().await;
        Err(refused)
    }

    async fn fill_record(
        &self,
        txn: &DatabaseTransaction,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
    ) -> Result<(), Refused> {
        let (reason, error) = (run.reason.as_deref().map(storable), run.error.as_deref().map(storable));
        let details = (!run.details.is_null()).then(|| storable_json(&run.details).to_string());
        if let Some(lease) = lease {
            let retrying = next.retrying;
            let values: [Value; 9] = [
                lease.job.as_str().into(),
                lease.fence.0.into(),
                self.holder.as_str().into(),
                next.cursor.timestamp_micros().into(),
                retrying.map(|retrying| retrying.scheduled_at.timestamp_micros()).into(),
                retrying.map(|retrying| retrying.not_before.timestamp_micros()).into(),
                i64::from(retrying.map_or(0, |retrying| retrying.failed_attempts)).into(),
                matches!(run.status, RunStatus::Done | RunStatus::Retrying | RunStatus::Dead).into(),
                error.clone().into(),
            ];
            let request = run.request.map(|request| request.to_string());
            let closing = self.sql.close.is_none().then(|| request.clone().into());
            let values = values.into_iter().chain(closing);
            if txn.execute_raw(self.statement(&self.sql.record, values)).await?.rows_affected() != 1 {
                return Err(Refused::LeaseLost);
            }
            if let Some(close) = &self.sql.close {
                let values: [Value; 3] = [lease.job.as_str().into(), lease.fence.0.into(), request.into()];
                txn.execute_raw(self.statement(close, values)).await?;
            }
        }
        let values: [Value; 19] = [
            run.id.to_string().into(),
            run.job.as_str().into(),
            if run.per_node { self.holder.as_str() } else { "" }.into(),
            run.scheduled_at.timestamp_micros().into(),
            run.status.as_str().into(),
            run.trigger.as_str().into(),
            i64::from(run.attempt).into(),
            run.fence.0.into(),
            self.holder.as_str().into(),
            run.started_at.timestamp_micros().into(),
            run.finished_at.timestamp_micros().into(),
            run.lateness_ms().into(),
            i64::try_from(run.items).unwrap_or(i64::MAX).into(),
            reason.into(),
            error.into(),
            details.into(),
            run.stretch.map(|stretch| stretch.from.timestamp_micros()).into(),
            run.stretch.map_or(1, |stretch| i64::from(stretch.count)).into(),
            run.request.map(|request| request.to_string()).into(),
        ];
        txn.execute_raw(self.statement(&self.sql.append, values)).await?;
        Ok(())
    }

    fn lease(&self, job: &str, row: &QueryResult) -> Result<Lease, DbErr> {
        let pauses: Option<String> = row.try_get("", "pauses")?;
        let requests: Option<String> = row.try_get("", "requests")?;
        let requests = control::requests(requests.as_deref())?;
        Ok(Lease {
            job: job.to_owned(),
            fence: FencingToken(row.try_get("", "fence")?),
            ttl: self.ttl,
            state: state(row)?,
            plan: expected(row)?,
            pauses: control::pauses(pauses.as_deref())?.into_iter().map(|(_, pause)| pause).collect(),
            requests,
        })
    }

    /// Remembers somebody's lease as it is now.
    fn look(&self, job: &str, fence: i64, expires_at: i64) {
        let since = self.clock.monotonic();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let unchanged =
            seen.get(job).is_some_and(|last| last.fence == fence && last.expires_at == expires_at);
        if !unchanged {
            seen.insert(job.to_owned(), Seen { fence, expires_at, since });
        }
    }

    /// Somebody's lease that nobody has renewed for twice its length by our own clock: the database's was set back.
    fn stuck(&self, job: &str) -> Option<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.monotonic();
        seen.get(job).filter(|seen| now.saturating_sub(seen.since) > self.ttl * 2).cloned()
    }

    fn statement(&self, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
        Statement::from_sql_and_values(self.db.get_database_backend(), sql, values)
    }
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
        let lease = match self.claim(job, first_cursor).await {
            Ok(Claim::Held(lease)) => lease,
            Ok(busy) => return Ok(busy),
            // Another claim of the same row, or a new job's first one, was faster.
            Err(error) if matches!(fault(&error), Fault::Conflict | Fault::Rows) => {
                return Ok(Claim::Busy { holder: "another daemon".to_owned() });
            }
            Err(error) => return Err(unavailable(error)),
        };
        if self.db.get_database_backend() == DbBackend::Sqlite {
            measured::claimed(job);
            return Ok(Claim::Held(lease));
        }
        match self.raise_alone(&lease).await {
            Ok(true) => {
                measured::claimed(job);
                Ok(Claim::Held(lease))
            }
            Ok(false) => {
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
            lease.fence.0.into(),
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
        match self.write_record(lease, run, next).await {
            Ok(()) => {
                measured::recorded(run);
                Ok(())
            }
            Err(Refused::LeaseLost) => {
                measured::fenced_off(&run.job);
                Err(StoreError::LeaseLost { job: run.job.clone(), fence: run.fence })
            }
            Err(Refused::Database(error)) if is_unique_violation(&error) => {
                Err(StoreError::AlreadyFinished { job: run.job.clone(), scheduled_at: run.scheduled_at })
            }
            Err(Refused::Database(error)) => Err(unavailable(error)),
        }
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let plan = lease.plan.as_ref();
        let micros = |at: Option<DateTime<Utc>>| at.map(|at| at.timestamp_micros());
        let values: [Value; 7] = [
            lease.job.as_str().into(),
            lease.fence.0.into(),
            self.holder.as_str().into(),
            plan.map(|plan| plan.schedule.as_str()).into(),
            plan.and_then(|plan| micros(plan.next_at)).into(),
            plan.and_then(|plan| micros(plan.late_at)).into(),
            plan.and_then(|plan| micros(plan.stuck_at)).into(),
        ];
        execute(&self.db, self.statement(&self.sql.release, values)).await.map_err(unavailable)?;
        Ok(())
    }

    async fn wishes(&self, known: Option<i64>) -> Result<Option<Wishes>, StoreError> {
        control::wishes(&self.db, known).await.map_err(unavailable)
    }

    async fn request(&self, request: &Request) -> Result<Receipt, StoreError> {
        control::request(&self.db, request).await.map_err(unavailable)
    }

    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        control::jobs(&self.db).await.map_err(unavailable)
    }

    async fn late(&self, now: DateTime<Utc>) -> Result<Vec<Late>, StoreError> {
        control::late(&self.db, now).await.map_err(unavailable)
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
fn expected(row: &QueryResult) -> Result<Option<Plan>, DbErr> {
    let Some(schedule) = row.try_get("", "schedule")? else { return Ok(None) };
    let at = |column| row.try_get::<Option<i64>>("", column)?.map(instant).transpose();
    Ok(Some(Plan { schedule, next_at: at("next_at")?, late_at: at("late_at")?, stuck_at: at("stuck_at")? }))
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
    StoreError::LeaseLost { job: lease.job.clone(), fence: lease.fence }
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

impl Sql {
    fn of(backend: DbBackend) -> Self {
        let dialect = Dialect::of(backend);
        let now = dialect.now();
        let at = |parameter: &str| dialect.at(parameter);
        let micros = |column: &str| dialect.micros(column);
        let cast = |parameter: &str, kind: &str| dialect.cast(parameter, kind);
        let in_ms = |parameter: &str| dialect.in_ms(parameter);
        let state = dialect.state_columns("");
        let (pauses, requests) = (
            dialect.pauses(
                "p.job = billing_job_state.job AND (p.resumed_at IS NULL OR p.resumed_at > cursor_at)",
            ),
            dialect.requests("q.job = billing_job_state.job AND q.kind <> 'cancel'"),
        );
        let claim = |condition: &str| {
            format!(
                "UPDATE billing_job_state
                    SET fence = 1 + CASE WHEN fence > f.newest THEN fence ELSE f.newest END, holder = $2,
                        expires_at = {expires}, updated_at = {now}
                   FROM (SELECT job AS fenced, fence AS newest FROM billing_fences) AS f
                  WHERE f.fenced = job AND job = $1 AND {condition}
              RETURNING fence, {state}, {pauses} AS pauses, {requests} AS requests",
                expires = in_ms("$3"),
            )
        };
        let newest = "job = $1 AND fence = $2 AND holder = $3
                      AND EXISTS (SELECT 1 FROM billing_fences f WHERE f.job = $1 AND f.fence = $2)";
        // The request that a run answers, and every wish to cancel it.
        let closed = |request: &str| {
            format!(
                "DELETE FROM billing_job_requests
                  WHERE job = $1 AND (id = {} OR kind = 'cancel' AND fence BETWEEN 1 AND $2)",
                cast(request, "uuid")
            )
        };
        Self {
            insert_state: format!(
                "INSERT INTO billing_job_state (job, cursor_at) VALUES ($1, {}) ON CONFLICT DO NOTHING",
                at("$2")
            ),
            insert_fence: "INSERT INTO billing_fences (job) VALUES ($1) ON CONFLICT DO NOTHING".to_owned(),
            claim: claim(&format!("(holder IS NULL OR expires_at <= {now})")),
            claim_unchanged: claim(&format!("fence = $4 AND {} = $5", micros("expires_at"))),
            holder: format!(
                "SELECT coalesce(holder, 'nobody') AS holder, fence, coalesce({}, 0) AS expires_at
                   FROM billing_job_state WHERE job = $1",
                micros("expires_at")
            ),
            raise: "UPDATE billing_fences SET fence = $2 WHERE job = $1 AND fence < $2".to_owned(),
            renew: format!(
                "UPDATE billing_job_state SET expires_at = {}, updated_at = {now}
                  WHERE job = $1 AND fence = $2 AND holder = $3 AND expires_at > {now}",
                in_ms("$4")
            ),
            record: format!(
                "{close} UPDATE billing_job_state
                    SET cursor_at = {cursor}, retry_scheduled_at = {scheduled}, retry_not_before = {not_before},
                        failed_attempts = {failed}, last_error = CASE WHEN $8 THEN {error} ELSE last_error END,
                        updated_at = {now}
                  WHERE {newest}",
                cursor = at("$4"),
                scheduled = at("$5"),
                not_before = at("$6"),
                failed = cast("$7", "int"),
                error = cast("$9", "text"),
                close = if dialect.is_sqlite() { String::new() } else { format!("WITH closed AS ({})", closed("$10")) },
            ),
            close: dialect.is_sqlite().then(|| closed("$3")),
            append: format!(
                "INSERT INTO billing_job_runs (id, job, node, scheduled_at, status, triggered_by, attempt, fence, daemon,
                                               started_at, finished_at, lateness_ms, items, reason, error, details,
                                               scheduled_from, scheduled_count, request_id)
                 VALUES ({id}, $2, $3, {scheduled}, $5, $6, {attempt}, $8, $9, {started}, {finished}, $12, $13, $14, $15,
                         {details}, {from}, $18, {request})",
                id = cast("$1", "uuid"),
                scheduled = at("$4"),
                attempt = cast("$7", "int"),
                started = at("$10"),
                finished = at("$11"),
                details = cast("$16", "jsonb"),
                from = at("$17"),
                request = cast("$19", "uuid"),
            ),
            release: format!(
                "UPDATE billing_job_state
                    SET holder = NULL, expires_at = NULL, schedule = {schedule}, next_at = {next}, late_at = {late},
                        stuck_at = {stuck}
                  WHERE job = $1 AND fence = $2 AND holder = $3",
                schedule = cast("$4", "text"),
                next = at("$5"),
                late = at("$6"),
                stuck = at("$7"),
            ),
        }
    }
}

#[cfg(feature = "testing")]
impl Sql {
    /// Without the guards that the fault campaign leaves out.
    fn tested(mut self) -> Self {
        use billing_jobs::testing::{instead, without};
        instead(
            "claim-unexpired",
            &mut self.claim,
            "(holder IS NULL OR expires_at <=",
            "(true OR expires_at <=",
        );
        instead("fence-not-raised", &mut self.raise, "SET fence = $2", "SET fence = fence");
        let newest = "AND EXISTS (SELECT 1 FROM billing_fences f WHERE f.job = $1 AND f.fence = $2)";
        without("record-unfenced", &mut self.record, newest);
        without("record-unfenced", &mut self.record, "AND fence = $2 AND holder = $3");
        self
    }
}
