//! The queue of one-off jobs in a database. A job has one row; a claim of it has a fencing token and an end by the database's clock.

mod listener;
mod sql;

use std::time::Duration;

use async_trait::async_trait;
use billing_scheduler::{
    FencingToken, JobContext, JobError, NewQueuedJob, QueueNext, QueueResult, QueueStore, QueueTime,
    QueuedJob, StoreError,
};
use chrono::TimeDelta;
use futures_util::future::try_join;
use sea_orm::{ConnectionTrait, DbErr, QueryResult, Value};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use crate::{
    dialect::Dialect,
    error_class::job_error,
    rows::{instant, millis, storable_json},
    store::{SeaOrmStore, unavailable},
    transaction::{begin, execute, query_all, statement},
};

/// The number of jobs that one call removes at most.
const PRUNED: i64 = 10_000;
/// The number of results that two connections settle on PostgreSQL, each a half in a transaction.
const SHARED_BATCH: usize = 200;

/// Adds jobs within a transaction of the application: they become due with its commit, which wakes the workers on PostgreSQL. Returns
/// the ids of those that were added.
///
/// The transaction must be of a database that has the tables of [`migrations`](crate::migrations).
///
/// # Errors
/// The error of the statement, such as a missing table or a lost connection; [`with_help`](crate::with_help) adds what to do. On
/// PostgreSQL the transaction accepts no further statement then, and nothing is added.
pub async fn enqueue_in(db: &impl ConnectionTrait, jobs: &[NewQueuedJob]) -> Result<Vec<Uuid>, DbErr> {
    let rows = encode(jobs.iter().map(JobRow::new));
    let sql = sql::enqueue(Dialect::of(db.get_database_backend()));
    ids(&db.query_all_raw(statement(db, &sql, [rows])).await?)
}

/// Finishes the job of a run within a transaction, together with the changes that the run makes in it: either both are committed, or
/// neither. The row of the job is locked until then. After the commit, the run returns success.
///
/// # Errors
/// The transaction must be rolled back then.
/// - [`JobError::Retry`] if the claim of the job is lost, because it expired and another process may run the job; or if the database
///   rejects the statement, for example after a conflict with another transaction.
/// - [`JobError::Unavailable`] if the connection is lost, or the disk of the database is full.
pub async fn finish_in(txn: &impl ConnectionTrait, ctx: &JobContext) -> Result<(), JobError> {
    let id = ctx.request_id.unwrap_or_default().to_string();
    let token = ctx.fencing_token.0;
    let [finish, record] = sql::finish(Dialect::of(txn.get_database_backend()));
    let finished = txn
        .execute_raw(statement(txn, &finish, [id.as_str().into(), token.into()]))
        .await
        .map_err(job_error)?;
    if finished.rows_affected() != 1 {
        return Err(JobError::retry(format!(
            "the claim of queued job {id} under fencing token {token} is lost"
        )));
    }
    let values: [Value; 5] = [
        id.into(),
        token.into(),
        ctx.run_id.to_string().into(),
        i64::from(ctx.attempt).into(),
        ctx.clock().now().timestamp_micros().into(),
    ];
    txn.execute_raw(statement(txn, &record, values)).await.map_err(job_error)?;
    Ok(())
}

#[async_trait]
impl QueueStore for SeaOrmStore {
    fn claim_ttl(&self) -> Duration {
        self.ttl
    }

    async fn enqueue(&self, jobs: &[NewQueuedJob]) -> Result<Vec<Uuid>, StoreError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let sql = sql::enqueue(self.dialect());
        let rows = query_all(&self.db, self.statement(&sql, [encode(jobs.iter().map(JobRow::new))])).await;
        rows.and_then(|rows| ids(&rows)).map_err(unavailable)
    }

    async fn listen(&self, added: &(dyn Fn() + Send + Sync)) {
        listener::listen(&self.database, added).await;
    }

    async fn claim(&self, limits: &[(String, u32)]) -> Result<Vec<QueuedJob>, StoreError> {
        if limits.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.claim_rows(limits).await.map_err(unavailable)?;
        rows.iter().map(queued_job).collect::<Result<_, _>>().map_err(unavailable)
    }

    async fn renew_claims(&self, claims: &[(Uuid, FencingToken)]) -> Result<Vec<Uuid>, StoreError> {
        let rows: Vec<_> =
            claims.iter().map(|(id, token)| json!({ "id": id.to_string(), "token": token.0 })).collect();
        let values: [Value; 3] =
            [json!(rows).to_string().into(), self.holder.as_str().into(), millis(self.ttl).into()];
        let db = self.renewal_connection().await?;
        let held = query_all(db, self.statement(&sql::renew_claims(self.dialect()), values)).await;
        held.and_then(|rows| ids(&rows)).map_err(unavailable)
    }

    async fn settle(&self, results: &[QueueResult]) -> Result<Vec<Uuid>, StoreError> {
        // On PostgreSQL two connections share a large batch: one server process would be the bottleneck of the queue.
        let middle =
            if self.dialect().is_sqlite() || results.len() < SHARED_BATCH { 0 } else { results.len() / 2 };
        let (one, other) = results.split_at(middle);
        let settled = if one.is_empty() {
            self.settle_rows(other).await
        } else {
            try_join(self.settle_rows(one), self.settle_rows(other))
                .await
                .map(|(one, other)| [one, other].concat())
        };
        settled.map_err(unavailable)
    }

    async fn prune(&self, age: Duration) -> Result<u64, StoreError> {
        let values: [Value; 2] = [millis(age).into(), PRUNED.into()];
        execute(&self.db, self.statement(&sql::prune(self.dialect()), values)).await.map_err(unavailable)
    }
}

impl SeaOrmStore {
    async fn claim_rows(&self, limits: &[(String, u32)]) -> Result<Vec<QueryResult>, DbErr> {
        let sql = sql::claim(self.dialect());
        let (holder, ttl): (Value, Value) = (self.holder.as_str().into(), millis(self.ttl).into());
        if !self.dialect().is_sqlite() {
            let kinds: Vec<_> =
                limits.iter().map(|(kind, free)| json!({ "kind": kind, "free": free })).collect();
            return query_all(&self.db, self.statement(&sql, [json!(kinds).to_string().into(), holder, ttl]))
                .await;
        }
        let mut rows = Vec::new();
        let txn = begin(&self.db).await?;
        for (kind, free) in limits {
            let values: [Value; 4] =
                [kind.as_str().into(), holder.clone(), ttl.clone(), i64::from(*free).into()];
            rows.extend(txn.query_all_raw(self.statement(&sql, values)).await?);
        }
        txn.commit().await?;
        Ok(rows)
    }

    /// Settles results in one transaction, and returns the ids of their jobs.
    async fn settle_rows(&self, results: &[QueueResult]) -> Result<Vec<Uuid>, DbErr> {
        let sql = sql::settle(self.dialect());
        let values: [Value; 2] = [encode(results.iter().map(ResultRow::new)), self.holder.as_str().into()];
        let Some(record) = &sql.record else {
            return ids(&query_all(&self.db, self.statement(&sql.update, values)).await?);
        };
        let txn = begin(&self.db).await?;
        txn.execute_raw(self.statement(&sql.update, values.clone())).await?;
        let rows = txn.query_all_raw(self.statement(record, values)).await?;
        txn.commit().await?;
        ids(&rows)
    }
}

/// A row of the parameter of [`sql::enqueue`]. A column that is left out is `NULL`: the server reads each field of each row.
#[derive(Serialize)]
struct JobRow<'a> {
    id: Uuid,
    kind: &'a str,
    payload: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<i64>,
    priority: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_key: Option<&'a str>,
}

impl<'a> JobRow<'a> {
    fn new(job: &'a NewQueuedJob) -> Self {
        let (at, after) = match job.time {
            // A job never starts early: what is shorter than a microsecond is rounded up.
            QueueTime::At(at) => (
                Some(at.checked_add_signed(TimeDelta::nanoseconds(999)).unwrap_or(at).timestamp_micros()),
                None,
            ),
            QueueTime::After(after) => (None, Some(micros(after))),
        };
        Self {
            id: job.id,
            kind: &job.kind,
            payload: storable_json(&job.payload).to_string(),
            at,
            after,
            priority: job.priority,
            unique_key: job.unique_key.as_deref(),
        }
    }
}

/// A row of the parameter of [`sql::settle`]. A column that is left out is `NULL`.
#[derive(Serialize)]
struct ResultRow<'a> {
    id: Uuid,
    token: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<i64>,
    failed: u32,
    run: Uuid,
    kind: &'a str,
    scheduled: i64,
    status: &'static str,
    attempt: u32,
    started: i64,
    finished: i64,
    lateness: i64,
    items: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<String>,
}

impl<'a> ResultRow<'a> {
    fn new(result: &'a QueueResult) -> Self {
        let run = &result.run;
        let (after, failed) = match result.next {
            QueueNext::Finished => (None, run.attempt.saturating_sub(1)),
            QueueNext::Again { after, failed_attempts } => (Some(micros(after)), failed_attempts),
        };
        let text = |text: &Option<String>| text.as_ref().map(|text| text.replace('\0', "\u{fffd}"));
        Self {
            id: result.id,
            token: run.fencing_token.0,
            after,
            failed,
            run: run.id,
            kind: &run.job,
            scheduled: run.scheduled_at.timestamp_micros(),
            status: run.status.as_str(),
            attempt: run.attempt,
            started: run.started_at.timestamp_micros(),
            finished: run.finished_at.timestamp_micros(),
            lateness: run.lateness_ms(),
            items: run.items,
            reason: text(&run.reason),
            error: text(&run.error),
            details: (!run.details.is_null()).then(|| storable_json(&run.details).to_string()),
        }
    }
}

/// Returns rows as a parameter.
fn encode<R: Serialize>(rows: impl Iterator<Item = R>) -> Value {
    let rows: Vec<_> = rows.collect();
    serde_json::to_string(&rows).expect("numbers, texts and ids are valid JSON").into()
}

fn queued_job(row: &QueryResult) -> Result<QueuedJob, DbErr> {
    let payload: String = row.try_get("", "payload")?;
    let failed_attempts: i64 = row.try_get("", "failed_attempts")?;
    Ok(QueuedJob {
        id: id(row)?,
        kind: row.try_get("", "kind")?,
        payload: serde_json::from_str(&payload)
            .map_err(|error| DbErr::Type(format!("cannot decode a payload in scheduler_queue: {error}")))?,
        scheduled_at: instant(row.try_get("", "scheduled_at")?)?,
        failed_attempts: u32::try_from(failed_attempts).unwrap_or(u32::MAX),
        fencing_token: FencingToken(row.try_get("", "fencing_token")?),
    })
}

fn ids(rows: &[QueryResult]) -> Result<Vec<Uuid>, DbErr> {
    rows.iter().map(id).collect()
}

fn id(row: &QueryResult) -> Result<Uuid, DbErr> {
    let text: String = row.try_get("", "id")?;
    Uuid::parse_str(&text).map_err(|_| DbErr::Type(format!("invalid id `{text}` in scheduler_queue")))
}

fn micros(duration: Duration) -> i64 {
    // A century is more than any wait, and cannot overflow an instant.
    const CENTURY: i64 = 3_155_760_000_000_000;
    i64::try_from(duration.as_nanos().div_ceil(1_000)).unwrap_or(CENTURY).min(CENTURY)
}
