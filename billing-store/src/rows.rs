//! Encoding and decoding of rows and value lists.

use std::time::Duration;

use billing_scheduler::{
    ClaimHint, ControlAction, ControlRequest, FencingToken, JobState, Lease, OccurrenceRange, Pause,
    Retrying, RunCause, RunRecord, RunRow, RunStatus,
};
use chrono::{DateTime, Utc};
use sea_orm::{DbErr, QueryResult, Value};
use serde::de::DeserializeOwned;
use serde_json::json;
use uuid::Uuid;

use crate::{dialect::Dialect, statements::RUN_VALUES};

/// Returns the values of the row of a run, written by the process `holder`.
pub(crate) fn run_values(holder: &str, run: &RunRecord) -> [Value; RUN_VALUES] {
    let details = (!run.details.is_null()).then(|| storable_json(&run.details).to_string());
    [
        run.id.to_string().into(),
        run.job.as_str().into(),
        if run.per_node { holder } else { "" }.into(),
        run.scheduled_at.timestamp_micros().into(),
        run.status.as_str().into(),
        run.cause.as_str().into(),
        i64::from(run.attempt).into(),
        run.fencing_token.0.into(),
        holder.into(),
        run.started_at.timestamp_micros().into(),
        run.finished_at.timestamp_micros().into(),
        run.lateness_ms().into(),
        i64::try_from(run.items).unwrap_or(i64::MAX).into(),
        run.reason.as_deref().map(storable).into(),
        run.error.as_deref().map(storable).into(),
        details.into(),
        run.range.map(|range| range.from.timestamp_micros()).into(),
        run.range.map_or(1, |range| i64::from(range.count)).into(),
        run.request_id.map(|request| request.to_string()).into(),
    ]
}

/// Returns the parameters of the update of a job's state after a run.
pub(crate) fn update_values(holder: &str, lease: &Lease, run: &RunRecord, next: &JobState) -> [Value; 9] {
    let retrying = next.retrying;
    [
        lease.job.as_str().into(),
        lease.fencing_token.0.into(),
        holder.into(),
        next.cursor.timestamp_micros().into(),
        retrying.map(|retrying| retrying.scheduled_at.timestamp_micros()).into(),
        retrying.map(|retrying| retrying.not_before.timestamp_micros()).into(),
        i64::from(retrying.map_or(0, |retrying| retrying.failed_attempts)).into(),
        matches!(run.status, RunStatus::Done | RunStatus::Retrying | RunStatus::Dead).into(),
        run.error.as_deref().map(storable).into(),
    ]
}

/// Returns the parameters for the claim hint of a released lease.
pub(crate) fn release_values(lease: &Lease) -> [Value; 5] {
    let hint = lease.claim_hint.as_ref();
    let micros = |at: Option<DateTime<Utc>>| at.map(|at| at.timestamp_micros());
    [
        hint.map(|hint| hint.schedule.as_str()).into(),
        hint.and_then(|hint| micros(hint.next_at)).into(),
        hint.and_then(|hint| micros(hint.late_at)).into(),
        hint.and_then(|hint| micros(hint.stuck_at)).into(),
        hint.filter(|hint| !hint.replaced.is_empty()).map(|hint| json!(hint.replaced).to_string()).into(),
    ]
}

/// Replaces NUL in a plugin's text. PostgreSQL rejects NUL, and a run that cannot be recorded would repeat without limit.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

pub(crate) fn storable_json(value: &serde_json::Value) -> serde_json::Value {
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

/// Decodes the state of a job's schedule.
pub(crate) fn state(row: &QueryResult) -> Result<JobState, DbErr> {
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

/// Decodes the claim hint of a job.
pub(crate) fn claim_hint(row: &QueryResult) -> Result<Option<ClaimHint>, DbErr> {
    let Some(schedule) = row.try_get("", "schedule")? else { return Ok(None) };
    let at = |column| row.try_get::<Option<i64>>("", column)?.map(instant).transpose();
    let replaced: Option<String> = row.try_get("", "replaced_schedules")?;
    let replaced = replaced.map_or(Ok(Vec::new()), |replaced| serde_json::from_str(&replaced));
    let replaced =
        replaced.map_err(|error| DbErr::Type(format!("cannot decode replaced_schedules: {error}")))?;
    Ok(Some(ClaimHint {
        schedule,
        next_at: at("next_at")?,
        late_at: at("late_at")?,
        stuck_at: at("stuck_at")?,
        replaced,
    }))
}

pub(crate) fn run_columns(dialect: Dialect) -> String {
    let micros = |column: &str| format!("{} AS {column}", dialect.micros(&format!("r.{column}")));
    let text = |column: &str| format!("{} AS {column}", dialect.cast(&format!("r.{column}"), "text"));
    format!(
        "r.job, r.node, r.status, r.cause, r.fencing_token, r.daemon_id, r.items, r.reason, r.error, r.scheduled_count,
         {}, {}, {} AS attempt",
        ["scheduled_at", "scheduled_from", "started_at", "finished_at"].map(micros).join(", "),
        ["id", "request_id", "details"].map(text).join(", "),
        dialect.cast("r.attempt", "bigint"),
    )
}

pub(crate) fn run(row: &QueryResult) -> Result<RunRow, DbErr> {
    let text = |column| row.try_get::<String>("", column);
    let at = |column| instant(row.try_get("", column)?);
    let number = |column| row.try_get::<i64>("", column);
    let unknown = |column: &str| DbErr::Type(format!("unknown {column} in scheduler_runs"));
    let from: Option<i64> = row.try_get("", "scheduled_from")?;
    let details: Option<String> = row.try_get("", "details")?;
    let request: Option<String> = row.try_get("", "request_id")?;
    let range = match from {
        None => None,
        Some(from) => Some(OccurrenceRange {
            from: instant(from)?,
            count: u32::try_from(number("scheduled_count")?).unwrap_or(u32::MAX),
        }),
    };
    let run = RunRecord {
        id: Uuid::parse_str(&text("id")?).map_err(|_| unknown("id"))?,
        job: text("job")?,
        per_node: !text("node")?.is_empty(),
        scheduled_at: at("scheduled_at")?,
        range,
        status: RunStatus::parse(&text("status")?).ok_or_else(|| unknown("status"))?,
        cause: RunCause::parse(&text("cause")?).ok_or_else(|| unknown("cause"))?,
        attempt: u32::try_from(number("attempt")?).unwrap_or_default(),
        fencing_token: FencingToken(number("fencing_token")?),
        started_at: at("started_at")?,
        finished_at: at("finished_at")?,
        items: number("items")?.unsigned_abs(),
        request_id: request.and_then(|id| Uuid::parse_str(&id).ok()),
        reason: row.try_get("", "reason")?,
        error: row.try_get("", "error")?,
        details: details.and_then(|details| serde_json::from_str(&details).ok()).unwrap_or_default(),
    };
    Ok(RunRow { run, daemon_id: text("daemon_id")? })
}

/// Decodes the pauses in a text of [`Dialect::pauses`], oldest first, each with its job.
pub(crate) fn pauses(text: Option<&str>) -> Result<Vec<(String, Pause)>, DbErr> {
    type Row = (String, i64, Option<i64>, String, Option<String>);
    let mut pauses = Vec::new();
    for (job, since, until, by, reason) in list::<Row>(text)? {
        let (since, until) = (instant(since)?, until.map(instant).transpose()?);
        pauses.push((job, Pause { since, until, by, reason }));
    }
    pauses.sort_by_key(|(_, pause)| pause.since);
    Ok(pauses)
}

/// Decodes the requests in a text of [`Dialect::requests`], oldest first.
pub(crate) fn requests(text: Option<&str>) -> Result<Vec<ControlRequest>, DbErr> {
    type Row = (Uuid, String, String, Option<i64>, Option<i64>, i64, String, Option<String>);
    let mut requests = Vec::new();
    for (id, job, kind, scheduled_at, fencing_token, at, by, reason) in list::<Row>(text)? {
        let action = match (kind.as_str(), scheduled_at, fencing_token) {
            ("replay", Some(at), _) => ControlAction::Replay { scheduled_at: instant(at)? },
            ("reset", ..) => ControlAction::Reset,
            ("cancel", _, Some(fencing_token)) => {
                ControlAction::Cancel { fencing_token: FencingToken(fencing_token) }
            }
            _ => ControlAction::RunNow,
        };
        requests.push(ControlRequest { id, job, action, by, reason, at: instant(at)? });
    }
    requests.sort_by_key(|request| (request.at, request.id));
    Ok(requests)
}

fn list<T: DeserializeOwned>(text: Option<&str>) -> Result<Vec<T>, DbErr> {
    let Some(text) = text else { return Ok(Vec::new()) };
    serde_json::from_str(text)
        .map_err(|error| DbErr::Type(format!("cannot decode a list of the database: {error}")))
}

pub(crate) fn instant(micros: i64) -> Result<DateTime<Utc>, DbErr> {
    DateTime::from_timestamp_micros(micros)
        .ok_or_else(|| DbErr::Type(format!("{micros} is not a valid instant")))
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
