//! Reads how billing stands. Changes nothing.

use std::collections::BTreeMap;

use billing_entities::{
    Id, Instant, billing_daemon_status, billing_fences, billing_job_runs, billing_job_state,
};
use billing_jobs::{
    AUDIT_KIND, BILLING_JOB, begin_read,
    billing::{Biller, Settings},
    hold::Reason,
    money::Money,
    query_all,
    status::ALIVE_WITHIN,
};
use billing_scheduler::{JobSpec, Scope};
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, Condition, DatabaseConnection, DbErr, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    Statement,
};

use super::{
    Bills, Daemon, Expected, FenceState, Held, JobStatus, Life, Owed, PanelStatus, RunStatus, Status, Totals,
    problems,
};
use crate::{beside::Beside, exit::Failure, runtime::Opened};

/// No more daemons are shown than these, the newest.
const DAEMONS: u64 = 100;
/// A job is late when it should have begun longer ago than this.
const LATE_AFTER: TimeDelta = TimeDelta::seconds(60);

/// How billing stands on the database that was opened, held against what is expected.
pub async fn read(opened: &Opened, expected: &Expected) -> Result<Status, Failure> {
    let failed = |error| Failure::database("read how billing stands", &error);
    let Opened { db, panel } = opened;
    let biller = Biller::new(db.clone(), *panel, Settings::default());
    let as_of = biller.now().await.map_err(failed)?;
    let beside = Beside::look(opened).await?;
    let job_rows = states(db).await.map_err(failed)?;
    let billing = job_rows.iter().find(|state| state.job == BILLING_JOB);
    let biller_now =
        billing.and_then(|state| state.holder.clone().filter(|_| is_held(state.expires_at, as_of)));
    let mut last_run = last_run(db, BILLING_JOB).await.map_err(failed)?;
    if let Some(run) = &mut last_run {
        let totals = biller.totals_of(run.id).await.map_err(failed)?;
        run.totals = Some(Totals {
            charged: totals.charged,
            held: totals.held,
            hours: totals.hours,
            amount: totals.amount.to_string(),
        });
    }
    let holds = holds(db).await.map_err(failed)?;
    let arrears = holds.iter().find(|held| held.reason == Reason::InsufficientBalance.as_str());
    let mut status = Status {
        ok: false,
        problems: Vec::new(),
        as_of,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        engine: engine(db),
        schema: schema(db).await?,
        panel: PanelStatus {
            generation: beside.generation.to_string(),
            inhabited: beside.inhabited,
            billing_off: expected.panel_billing == crate::config::PanelBilling::Off,
            fence: FenceState {
                installed: beside.fence.installed,
                enabled: beside.fence.enabled,
                after_seconds: beside.fence.after.map(|after| after.as_secs()),
                outdated: beside.fence.outdated,
            },
        },
        worked_at: worked_at(db).await.map_err(failed)?,
        last_run,
        last_audit: last_audit(db, expected).await.map_err(failed)?,
        arrears: arrears.map_or_else(
            || Owed { amount: Money(0).to_string(), ..Owed::default() },
            |held| held.owed.clone(),
        ),
        daemons: daemons(db, as_of, biller_now.as_deref()).await.map_err(failed)?,
        jobs: jobs(db, as_of, job_rows, expected).await.map_err(failed)?,
        holds,
    };
    status.problems = problems(&status, expected);
    status.ok = status.problems.is_empty();
    Ok(status)
}

fn engine(db: &DatabaseConnection) -> String {
    match db.get_database_backend() {
        sea_orm::DbBackend::Sqlite => "SQLite".to_owned(),
        _ => "PostgreSQL".to_owned(),
    }
}

async fn schema(db: &DatabaseConnection) -> Result<String, Failure> {
    let migrations = migration::status(db).await?;
    let newest = migrations.into_iter().rfind(|(_, applied)| *applied).map(|(name, _)| name);
    Ok(newest.unwrap_or_else(|| "none".to_owned()))
}

async fn worked_at(db: &DatabaseConnection) -> Result<Option<DateTime<Utc>>, DbErr> {
    let txn = begin_read(db).await?;
    let fence = billing_fences::Entity::find_by_id(BILLING_JOB).one(&txn).await?;
    txn.commit().await?;
    Ok(fence.and_then(|fence| fence.worked_at).map(|Instant(at)| at))
}

async fn states(db: &DatabaseConnection) -> Result<Vec<billing_job_state::Model>, DbErr> {
    let txn = begin_read(db).await?;
    let states =
        billing_job_state::Entity::find().order_by_asc(billing_job_state::Column::Job).all(&txn).await?;
    txn.commit().await?;
    Ok(states)
}

fn is_held(expires_at: Option<Instant>, as_of: DateTime<Utc>) -> bool {
    expires_at.is_some_and(|Instant(until)| until > as_of)
}

/// The newest runs, of one job or of all.
pub async fn runs(db: &DatabaseConnection, job: Option<&str>, limit: u64) -> Result<Vec<RunStatus>, Failure> {
    newest(db, of_job(job), limit).await.map_err(|error| Failure::database("read the history", &error))
}

async fn last_run(db: &DatabaseConnection, job: &str) -> Result<Option<RunStatus>, DbErr> {
    Ok(newest(db, of_job(Some(job)), 1).await?.pop())
}

async fn last_audit(db: &DatabaseConnection, expected: &Expected) -> Result<Option<RunStatus>, DbErr> {
    let audits = expected.jobs.iter().filter(|spec| spec.kind == AUDIT_KIND);
    let mut newest_of_each = Vec::new();
    // Of each by itself: the index of the history begins with the job.
    for spec in audits {
        let done = of_job(Some(&spec.name)).add(billing_job_runs::Column::Status.eq("done"));
        newest_of_each.extend(newest(db, done, 1).await?);
    }
    Ok(newest_of_each.into_iter().max_by_key(|run| run.started_at))
}

fn of_job(job: Option<&str>) -> Condition {
    Condition::all().add_option(job.map(|job| billing_job_runs::Column::Job.eq(job)))
}

async fn newest(db: &DatabaseConnection, which: Condition, limit: u64) -> Result<Vec<RunStatus>, DbErr> {
    let txn = begin_read(db).await?;
    let runs = billing_job_runs::Entity::find()
        .filter(which)
        .order_by_desc(billing_job_runs::Column::StartedAt)
        .limit(limit)
        .all(&txn)
        .await?;
    txn.commit().await?;
    let run_status = |run: billing_job_runs::Model| {
        let (Id(id), Instant(scheduled_at)) = (run.id, run.scheduled_at);
        let (Instant(started_at), Instant(finished_at)) = (run.started_at, run.finished_at);
        RunStatus {
            id,
            job: run.job,
            scheduled_at,
            started_at,
            finished_at,
            status: run.status,
            trigger: run.triggered_by,
            attempt: run.attempt,
            lateness_ms: run.lateness_ms,
            daemon: run.daemon,
            error: run.error,
            details: run.details,
            totals: None,
        }
    };
    Ok(runs.into_iter().map(run_status).collect())
}

async fn daemons(
    db: &DatabaseConnection,
    as_of: DateTime<Utc>,
    bills_now: Option<&str>,
) -> Result<Vec<Daemon>, DbErr> {
    let txn = begin_read(db).await?;
    let rows = billing_daemon_status::Entity::find()
        .order_by_desc(billing_daemon_status::Column::Id)
        .limit(DAEMONS)
        .all(&txn)
        .await?;
    txn.commit().await?;
    Ok(rows.into_iter().map(|row| daemon(row, as_of, bills_now)).collect())
}

fn daemon(row: billing_daemon_status::Model, as_of: DateTime<Utc>, bills_now: Option<&str>) -> Daemon {
    let metadata = row.metadata.unwrap_or_default();
    let text = |key: &str| metadata.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
    let heard_at = row.updated_at.or(row.created_at);
    let silence = heard_at.map(|at| (as_of - at).to_std().unwrap_or_default());
    let state = match row.status.as_str() {
        "stopped" => Life::Stopped,
        _ if silence.is_none_or(|silence| silence > ALIVE_WITHIN) => Life::Dead,
        "error" => Life::Failing,
        _ => Life::Alive,
    };
    // A daemon without a billing job tells no interval.
    let has_billing = metadata.get("billingIntervalMinutes").is_some_and(serde_json::Value::is_u64);
    let bills = match state {
        _ if bills_now == Some(row.daemon_instance_id.as_str()) => Bills::Now,
        Life::Alive | Life::Failing if has_billing => Bills::Next,
        _ => Bills::No,
    };
    Daemon {
        instance: row.daemon_instance_id,
        host: text("hostname"),
        version: text("version"),
        state,
        heard_at,
        heartbeat_at: row.heartbeat_at,
        started_at: row.started_at,
        bills,
        error: row.error_message.filter(|_| state != Life::Stopped),
    }
}

async fn holds(db: &DatabaseConnection) -> Result<Vec<Held>, DbErr> {
    let sql = "SELECT reason, min(opened_at) AS since, count(*) AS instances,
                      CAST(sum(hours_due) AS bigint) AS hours, CAST(coalesce(sum(amount_due), 0) AS bigint) AS amount
                 FROM billing_holds WHERE closed_at IS NULL GROUP BY reason ORDER BY reason";
    let rows = query_all(db, Statement::from_string(db.get_database_backend(), sql)).await?;
    let held = rows.iter().map(|row| {
        let count = |column| row.try_get::<i64>("", column).map(i64::unsigned_abs);
        let Instant(since) = row.try_get("", "since")?;
        let owed = Owed {
            instances: count("instances")?,
            hours: count("hours")?,
            amount: Money(row.try_get("", "amount")?).to_string(),
        };
        Ok(Held { reason: row.try_get("", "reason")?, since, owed })
    });
    held.collect()
}

async fn jobs(
    db: &DatabaseConnection,
    as_of: DateTime<Utc>,
    states: Vec<billing_job_state::Model>,
    expected: &Expected,
) -> Result<Vec<JobStatus>, DbErr> {
    let mut specs: BTreeMap<&str, &JobSpec> =
        expected.jobs.iter().map(|spec| (spec.name.as_str(), spec)).collect();
    let mut jobs = Vec::new();
    for state in states {
        let spec = specs.remove(state.job.as_str());
        jobs.push(job(state, spec, as_of));
    }
    // Those that have no row: what each node runs, and what never ran.
    let unseen = specs.into_values().map(|spec| JobStatus {
        name: spec.name.clone(),
        cursor: None,
        holder: None,
        fence: 0,
        due_at: None,
        late_seconds: None,
        paused: None,
        failed_attempts: 0,
        last_error: None,
        last_run: None,
    });
    jobs.extend(unseen);
    jobs.sort_by(|a, b| a.name.cmp(&b.name));
    let paused = paused(db).await?;
    for job in &mut jobs {
        job.last_run = last_run(db, &job.name).await?;
        job.paused = paused.get(&job.name).cloned();
        job.late_seconds = job.late_seconds.filter(|_| job.paused.is_none());
    }
    Ok(jobs)
}

/// The paused jobs, each with who paused it and why.
async fn paused(db: &DatabaseConnection) -> Result<BTreeMap<String, String>, DbErr> {
    let open = "SELECT job, paused_by, reason FROM billing_job_pauses WHERE resumed_at IS NULL";
    let rows = query_all(db, Statement::from_string(db.get_database_backend(), open)).await?;
    let paused = rows.iter().map(|row| {
        let (by, reason): (String, Option<String>) =
            (row.try_get("", "paused_by")?, row.try_get("", "reason")?);
        let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        Ok((row.try_get("", "job")?, format!("paused by {by}{reason}")))
    });
    paused.collect()
}

fn job(state: billing_job_state::Model, spec: Option<&JobSpec>, as_of: DateTime<Utc>) -> JobStatus {
    let Instant(cursor) = state.cursor_at;
    let held = is_held(state.expires_at, as_of);
    let due_at = match (spec, state.retry_not_before) {
        (_, Some(Instant(not_before))) => Some(not_before),
        (Some(spec), None) if spec.scope == Scope::Cluster => spec.schedule.next_after(cursor).ok().flatten(),
        _ => None,
    };
    // Only what is configured is late: a job that was taken out leaves its row behind.
    let late = due_at.map(|due| as_of - due).filter(|late| *late > LATE_AFTER && !held && spec.is_some());
    JobStatus {
        name: state.job,
        cursor: Some(cursor),
        holder: state.holder.filter(|_| held),
        fence: state.fence,
        due_at,
        late_seconds: late.map(|late| late.num_seconds().unsigned_abs()),
        paused: None,
        failed_attempts: state.failed_attempts,
        last_error: state.last_error,
        last_run: None,
    }
}
