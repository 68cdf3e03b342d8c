//! Control requests, and the queries for jobs and runs.

use std::{collections::HashMap, time::Duration};

use billing_scheduler::{
    ControlAction, ControlReceipt, ControlRequest, ControlState, FencingToken, Holder, JobRow, LateJob,
    NOT_AHEAD, Pause, RunFilter, RunRow, StorePoll,
};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, QueryResult, Statement, Value};
use serde_json::{Value as JsonValue, json};

use crate::{
    audit_log::{self, AuditEvent},
    connection::DedicatedConnection,
    dialect::Dialect,
    rows::{claim_hint, instant, pauses, requests, run, run_columns, state},
    store::is_unique_violation,
    transaction::{StatementLimit, Transaction, begin, begin_read, query_all, query_one},
};

/// The maximum number of attempts at a request while other requests are written at the same time.
const ATTEMPTS: u32 = 50;
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// Selects the id of the newest request. Polled every second or two: one round trip, and one page of an index.
const REVISION: &str = "coalesce(max(id), 0) AS revision FROM scheduler_audit_log";

pub(crate) async fn poll(
    connection: &DedicatedConnection,
    dialect: Dialect,
    known: Option<i64>,
) -> Result<StorePoll, DbErr> {
    if known.is_some() {
        let revision = format!("SELECT {} AS now, {REVISION}", dialect.clock());
        if let Some(row) = connection.query_one(revision).await?
            && known == row.try_get("", "revision")?
        {
            return Ok(StorePoll { now: time(&row)?, changed: None });
        }
    }
    let rows = connection.query_all(control_state_query(dialect)).await?;
    let now = rows.first().map_or(Ok(None), time)?;
    Ok(StorePoll { now, changed: Some(decode_control_state(&rows)?) })
}

/// Returns the time by the database's clock, which every process follows.
pub async fn read_time(db: &DatabaseConnection) -> Result<DateTime<Utc>, DbErr> {
    let dialect = Dialect::of(db.get_database_backend());
    let sql = format!("SELECT {} AS now", dialect.micros(dialect.now()));
    let row = query_one(db, Statement::from_string(dialect.backend(), sql)).await?;
    row.as_ref().map_or(Ok(None), time)?.ok_or_else(|| DbErr::RecordNotFound("the time".to_owned()))
}

/// Returns the time in the column `now`.
fn time(row: &QueryResult) -> Result<Option<DateTime<Utc>>, DbErr> {
    row.try_get::<Option<i64>>("", "now")?.map(instant).transpose()
}

/// Reads which jobs are paused and which requests are open.
pub async fn read_control_state(db: &DatabaseConnection) -> Result<ControlState, DbErr> {
    decode_control_state(&query_all(db, control_state_query(Dialect::of(db.get_database_backend()))).await?)
}

/// Returns one statement, so that its parts are consistent.
fn control_state_query(dialect: Dialect) -> Statement {
    let sql = format!(
        "SELECT {} AS now, r.revision, {} AS pauses, {} AS requests FROM (SELECT {REVISION}) r",
        dialect.clock(),
        dialect.pauses("p.resumed_at IS NULL"),
        dialect.requests("true"),
    );
    Statement::from_string(dialect.backend(), sql)
}

fn decode_control_state(rows: &[QueryResult]) -> Result<ControlState, DbErr> {
    let row = rows.first().ok_or_else(|| DbErr::RecordNotFound("the newest control request".to_owned()))?;
    let text = |column| row.try_get::<Option<String>>("", column);
    Ok(ControlState {
        revision: row.try_get("", "revision")?,
        paused: pauses(text("pauses")?.as_deref())?,
        requests: requests(text("requests")?.as_deref())?,
    })
}

/// Why a claim is not cancelled.
pub const OTHER_CLAIM: &str = "another claim holds the job";

/// Stores a control request without a lease: a process that runs the job applies it. The caller checks that the job is known. A
/// request with an id that was stored before changes nothing.
pub async fn submit_request(
    db: &DatabaseConnection,
    request: &ControlRequest,
) -> Result<ControlReceipt, DbErr> {
    for attempt in 1.. {
        let txn = begin(db).await?;
        let done = async {
            const REPEATED: &str = "this request is already stored";
            if audit_log::is_recorded(&txn, request.id).await? {
                return Ok(ControlReceipt::Unchanged(REPEATED.to_owned()));
            }
            Ok(match apply_request(&txn, request).await? {
                RequestEffect::Unchanged(why) => ControlReceipt::Unchanged(why),
                RequestEffect::Changed { before, after } => {
                    let event = audit_event(request, &before, &after);
                    if !audit_log::append_once(&txn, &event, request.id).await? {
                        return Ok(ControlReceipt::Unchanged(REPEATED.to_owned()));
                    }
                    ControlReceipt::Accepted
                }
            })
        };
        match done.await {
            Ok(receipt @ ControlReceipt::Accepted) => {
                txn.commit().await?;
                return Ok(receipt);
            }
            Ok(receipt @ ControlReceipt::Unchanged(_)) => {
                txn.rollback().await?;
                return Ok(receipt);
            }
            Err(error) => {
                // The first error is the one to report; a failed rollback adds nothing.
                let _ = txn.rollback().await;
                if attempt == ATTEMPTS || !is_unique_violation(&error) {
                    return Err(error);
                }
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }
    unreachable!("the last attempt returns")
}

/// The effect of a request.
enum RequestEffect {
    Unchanged(String),
    Changed { before: JsonValue, after: JsonValue },
}

fn audit_event(request: &ControlRequest, before: &JsonValue, after: &JsonValue) -> AuditEvent {
    AuditEvent {
        by: request.by.clone(),
        action: request.action.as_str(),
        job: request.job.clone(),
        reason: request.reason.clone(),
        details: json!({ "request": request.id, "before": before, "after": after }),
    }
}

async fn apply_request(txn: &Transaction, request: &ControlRequest) -> Result<RequestEffect, DbErr> {
    let dialect = Dialect::of(txn.get_database_backend());
    let unchanged = |why: &str| Ok(RequestEffect::Unchanged(why.to_owned()));
    let changed = |before: JsonValue, after: JsonValue| Ok(RequestEffect::Changed { before, after });
    let (id, job, by) = (request.id.to_string(), request.job.as_str(), request.by.as_str());
    let (at, reason) = (request.at.timestamp_micros(), request.reason.as_deref());
    match request.action {
        ControlAction::Pause => {
            if let Some(pause) = open_pause(txn, job).await? {
                return unchanged(&format!("it is {pause}, since {}", pause.since));
            }
            let insert = format!(
                "INSERT INTO scheduler_pauses (id, job, paused_at, paused_by, reason)
                 VALUES ({}, $2, {}, $4, $5)",
                dialect.cast("$1", "uuid"),
                dialect.at("$3")
            );
            let values: [Value; 5] = [id.into(), job.into(), at.into(), by.into(), reason.into()];
            txn.execute_raw(statement(txn, &insert, values)).await?;
            changed(json!("not paused"), json!("paused"))
        }
        ControlAction::Resume => {
            let Some(pause) = open_pause(txn, job).await? else { return unchanged("it is not paused") };
            let resume = format!(
                "UPDATE scheduler_pauses SET resumed_at = {}, resumed_by = $3
                  WHERE job = $1 AND resumed_at IS NULL",
                dialect.at("$2")
            );
            let values: [Value; 3] = [job.into(), at.into(), by.into()];
            if txn.execute_raw(statement(txn, &resume, values)).await?.rows_affected() == 0 {
                return unchanged("it is not paused");
            }
            changed(json!(pause.to_string()), json!("not paused"))
        }
        ControlAction::RunNow => {
            open(txn, request, None).await?;
            changed(JsonValue::Null, json!("requested"))
        }
        ControlAction::Replay { scheduled_at } => {
            open(txn, request, None).await?;
            changed(JsonValue::Null, json!({ "scheduled_at": scheduled_at }))
        }
        ControlAction::Reset => {
            let cursor = format!(
                "SELECT {} AS cursor FROM scheduler_jobs WHERE job = $1",
                dialect.micros("cursor_at")
            );
            let row = txn.query_one_raw(statement(txn, &cursor, [job.into()])).await?;
            let cursor: Option<i64> = row.map(|row| row.try_get("", "cursor")).transpose()?;
            let Some(cursor) = cursor.filter(|cursor| *cursor > at) else { return unchanged(NOT_AHEAD) };
            open(txn, request, None).await?;
            changed(json!({ "cursor": instant(cursor)? }), json!("reset"))
        }
        ControlAction::Cancel { .. } => cancel(txn, request).await,
    }
}

/// Withdraws the open requests of a job, and requests the run of its present claim to stop.
async fn cancel(txn: &Transaction, request: &ControlRequest) -> Result<RequestEffect, DbErr> {
    let (dialect, job) = (Dialect::of(txn.get_database_backend()), request.job.as_str());
    let withdraw = "DELETE FROM scheduler_requests WHERE job = $1 AND kind <> 'cancel'";
    let withdrawn = txn.execute_raw(statement(txn, withdraw, [job.into()])).await?.rows_affected();
    // A job that every node runs has no claim hint and no claim to cancel.
    let claim = format!(
        "SELECT CASE WHEN holder IS NOT NULL AND expires_at > {} THEN fencing_token
                     WHEN schedule IS NULL THEN 0 ELSE -1 END AS fencing_token, {} AS retrying
           FROM scheduler_jobs WHERE job = $1",
        dialect.now(),
        dialect.micros("retry_scheduled_at"),
    );
    let row = txn.query_one_raw(statement(txn, &claim, [job.into()])).await?;
    let (fencing_token, retrying): (i64, Option<i64>) = match row {
        Some(row) => (row.try_get("", "fencing_token")?, row.try_get("", "retrying")?),
        None => (0, None),
    };
    // The caller saw this claim.
    if let ControlAction::Cancel { fencing_token: FencingToken(seen) } = request.action
        && seen > 0
        && seen != fencing_token
    {
        return Ok(RequestEffect::Unchanged(OTHER_CLAIM.to_owned()));
    }
    let stale = format!(
        "DELETE FROM scheduler_requests WHERE kind = 'cancel' AND requested_at < {}",
        dialect.in_ms("$1")
    );
    txn.execute_raw(statement(txn, &stale, [(-3_600_000_i64).into()])).await?;
    if fencing_token >= 0 {
        open(txn, request, Some(fencing_token)).await?;
    } else if withdrawn == 0 && retrying.is_none() {
        return Ok(RequestEffect::Unchanged("no daemon runs it".to_owned()));
    }
    let retrying = retrying.map(instant).transpose()?;
    Ok(RequestEffect::Changed {
        before: json!({ "withdrawn": withdrawn, "fencing_token": (fencing_token > 0).then_some(fencing_token), "retrying": retrying }),
        after: json!("cancelled"),
    })
}

/// Returns the current pause of a job.
async fn open_pause(txn: &Transaction, job: &str) -> Result<Option<Pause>, DbErr> {
    let dialect = Dialect::of(txn.get_database_backend());
    let open = format!("SELECT {} AS pauses", dialect.pauses("p.job = $1 AND p.resumed_at IS NULL"));
    let row = txn.query_one_raw(statement(txn, &open, [job.into()])).await?;
    let open: Option<String> = row.map_or(Ok(None), |row| row.try_get("", "pauses"))?;
    Ok(pauses(open.as_deref())?.pop().map(|(_, pause)| pause))
}

async fn open(txn: &Transaction, request: &ControlRequest, fencing_token: Option<i64>) -> Result<(), DbErr> {
    let dialect = Dialect::of(txn.get_database_backend());
    let insert = format!(
        "INSERT INTO scheduler_requests
                (id, job, kind, scheduled_at, fencing_token, requested_at, requested_by, reason)
         VALUES ({}, $2, $3, {}, {}, {}, $7, $8)",
        dialect.cast("$1", "uuid"),
        dialect.at("$4"),
        dialect.cast("$5", "bigint"),
        dialect.at("$6")
    );
    let scheduled_at = match request.action {
        ControlAction::Replay { scheduled_at } => Some(scheduled_at.timestamp_micros()),
        _ => None,
    };
    let values: [Value; 8] = [
        request.id.to_string().into(),
        request.job.as_str().into(),
        request.action.as_str().into(),
        scheduled_at.into(),
        fencing_token.into(),
        request.at.timestamp_micros().into(),
        request.by.as_str().into(),
        request.reason.as_deref().into(),
    ];
    txn.execute_raw(statement(txn, &insert, values)).await?;
    Ok(())
}

/// Reads every job that was ever claimed, sorted by name, with its last run.
pub async fn read_jobs(db: &DatabaseConnection) -> Result<Vec<JobRow>, DbErr> {
    let txn = begin_read(db, StatementLimit::Fleet).await?;
    let states = states(Dialect::of(txn.get_database_backend()), "true", []);
    let mut jobs = in_order(&txn.query_all_raw(states).await?)?;
    let names: Vec<&str> = jobs.iter().map(|row| row.job.as_str()).collect();
    let mut newest = last_runs(&txn, &names).await?;
    txn.commit().await?;
    for row in &mut jobs {
        row.last_run = newest.remove(&row.job);
    }
    Ok(jobs)
}

/// Reads the last run of each of these jobs that has one.
pub async fn read_last_runs(
    db: &DatabaseConnection,
    jobs: &[&str],
) -> Result<HashMap<String, RunRow>, DbErr> {
    if jobs.is_empty() {
        return Ok(HashMap::new());
    }
    let txn = begin_read(db, StatementLimit::Fleet).await?;
    let newest = last_runs(&txn, jobs).await?;
    txn.commit().await?;
    Ok(newest)
}

async fn last_runs(txn: &Transaction, jobs: &[&str]) -> Result<HashMap<String, RunRow>, DbErr> {
    let dialect = Dialect::of(txn.get_database_backend());
    let names = if dialect.is_sqlite() {
        "json_each($1) AS j"
    } else {
        "jsonb_array_elements_text($1::jsonb) AS j (value)"
    };
    let sql = format!(
        "SELECT {} FROM {names} JOIN scheduler_runs r ON r.id =
                (SELECT n.id FROM scheduler_runs n WHERE n.job = j.value ORDER BY n.started_at DESC, n.id DESC LIMIT 1)",
        run_columns(dialect),
    );
    let newest = txn.query_all_raw(statement(txn, &sql, [json!(jobs).to_string().into()])).await?;
    newest.iter().map(|row| run(row).map(|row| (row.run.job.clone(), row))).collect()
}

/// Reads one job with its last run.
pub async fn read_job(db: &DatabaseConnection, name: &str) -> Result<Option<JobRow>, DbErr> {
    let state = states(Dialect::of(db.get_database_backend()), "s.job = $1", [name.into()]);
    let Some(row) = query_all(db, state).await?.first().map(job).transpose()? else { return Ok(None) };
    let newest = RunFilter { job: Some(name.to_owned()), limit: 1, ..RunFilter::default() };
    Ok(Some(JobRow { last_run: read_runs(db, &newest).await?.pop(), ..row }))
}

/// The names that the database knows: of jobs with a state, and of paused jobs.
const NAMES: &str =
    "SELECT job FROM scheduler_jobs UNION SELECT job FROM scheduler_pauses WHERE resumed_at IS NULL";

/// Returns whether the database knows a job of that name.
pub async fn is_known_job(db: &DatabaseConnection, name: &str) -> Result<bool, DbErr> {
    let sql = format!("SELECT job FROM ({NAMES}) names WHERE job = $1");
    let query = Statement::from_sql_and_values(db.get_database_backend(), sql, [name.into()]);
    Ok(!query_all(db, query).await?.is_empty())
}

/// Reads the names of all jobs that the database knows.
pub async fn read_job_names(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let rows = query_all(db, Statement::from_string(db.get_database_backend(), NAMES)).await?;
    rows.iter().map(|row| row.try_get("", "job")).collect()
}

pub(crate) async fn late(
    connection: &DedicatedConnection,
    dialect: Dialect,
    now: DateTime<Utc>,
) -> Result<Vec<LateJob>, DbErr> {
    // `late_at` is earlier than `stuck_at`, so this condition finds running jobs as well.
    let condition = format!("s.late_at < {}", dialect.at("$1"));
    let overdue = connection.query_all(states(dialect, &condition, [now.timestamp_micros().into()])).await?;
    Ok(in_order(&overdue)?.iter().filter_map(|row| row.late(now)).collect())
}

/// Selects the jobs that meet `condition`, without their last runs.
fn states(dialect: Dialect, condition: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    let sql = format!(
        "SELECT s.job, s.fencing_token, {state}, {expires} AS expires_at,
                CASE WHEN s.holder IS NOT NULL AND s.expires_at > {now} THEN s.holder END AS holder,
                {pauses} AS pauses
           FROM scheduler_jobs s WHERE {condition}",
        state = dialect.state_columns("s."),
        expires = dialect.micros("s.expires_at"),
        now = dialect.now(),
        pauses = dialect.pauses("p.job = s.job AND p.resumed_at IS NULL"),
    );
    Statement::from_sql_and_values(dialect.backend(), sql, values)
}

/// Returns the jobs sorted by name. The order of text in SQL depends on the database.
fn in_order(states: &[QueryResult]) -> Result<Vec<JobRow>, DbErr> {
    let mut jobs = states.iter().map(job).collect::<Result<Vec<_>, _>>()?;
    jobs.sort_unstable_by(|a, b| a.job.cmp(&b.job));
    Ok(jobs)
}

fn job(row: &QueryResult) -> Result<JobRow, DbErr> {
    let open: Option<String> = row.try_get("", "pauses")?;
    let lease = match row.try_get::<Option<String>>("", "holder")? {
        None => None,
        Some(name) => Some(Holder {
            name,
            fencing_token: FencingToken(row.try_get("", "fencing_token")?),
            expires_at: instant(row.try_get("", "expires_at")?)?,
        }),
    };
    Ok(JobRow {
        job: row.try_get("", "job")?,
        state: state(row)?,
        claim_hint: claim_hint(row)?,
        lease,
        paused: pauses(open.as_deref())?.pop().map(|(_, pause)| pause),
        last_run: None,
    })
}

/// Reads the runs that `filter` selects, newest first.
pub async fn read_runs(db: &DatabaseConnection, filter: &RunFilter) -> Result<Vec<RunRow>, DbErr> {
    let dialect = Dialect::of(db.get_database_backend());
    let RunFilter { id, job, status, since, scheduled_at, request_id, limit } = filter;
    let mut conditions: Vec<String> = Vec::new();
    let mut values: Vec<Value> = Vec::new();
    let mut condition = |value: Value, condition: &dyn Fn(&str) -> String| {
        values.push(value);
        conditions.push(condition(&format!("${}", values.len())));
    };
    if let Some(id) = id {
        condition(id.to_string().into(), &|id| format!("r.id = {}", dialect.cast(id, "uuid")));
    }
    if let Some(job) = job {
        condition(job.as_str().into(), &|job| format!("r.job = {job}"));
    }
    if let Some(status) = status {
        condition(status.as_str().into(), &|status| format!("r.status = {status}"));
    }
    if let Some(since) = since {
        condition(since.timestamp_micros().into(), &|at| format!("r.started_at >= {}", dialect.at(at)));
    }
    if let Some(at) = scheduled_at {
        let of_job = job.as_ref().map(|_| format!("job = ${} AND ", 1 + usize::from(id.is_some())));
        let of_job = of_job.unwrap_or_default();
        condition(at.timestamp_micros().into(), &|at| {
            let at = dialect.at(at);
            // Each part has an index. Few rows cover a range, and a range may be of any length.
            format!(
                "r.id IN (SELECT id FROM scheduler_runs WHERE {of_job}cause <> 'queue' AND scheduled_at = {at} UNION ALL
                          SELECT id FROM scheduler_runs WHERE {of_job}scheduled_from IS NOT NULL AND scheduled_from <= {at} AND scheduled_at >= {at})"
            )
        });
    }
    if let Some(request_id) = request_id {
        condition(request_id.to_string().into(), &|id| {
            format!("r.request_id = {}", dialect.cast(id, "uuid"))
        });
    }
    let all =
        if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
    let limit = if *limit == 0 { String::new() } else { format!("LIMIT {limit}") };
    let sql = format!(
        "SELECT {} FROM scheduler_runs r {all} ORDER BY r.started_at DESC, r.id DESC {limit}",
        run_columns(dialect)
    );
    let statement = Statement::from_sql_and_values(db.get_database_backend(), sql, values);
    query_all(db, statement).await?.iter().map(run).collect()
}

fn statement(txn: &Transaction, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(txn.get_database_backend(), sql, values)
}
