//! Reads the status of billing, and changes nothing.

use billing_entities::{Instant, scheduler_fencing};
use billing_jobs::{
    AUDIT_KIND, BILLING_JOB,
    billing::{Biller, BillingSettings, HAND_BACK_AFTER, micros},
    currency::Currency,
    daemon_status::{ALIVE_WITHIN, CLOCK_OFFSET},
    hold::Reason,
    money::Money,
    restore_detection::Halt,
    uncharged::Closed,
};
use billing_scheduler::{RunFilter, RunRow, RunStatus};
use billing_store::{StatementLimit, begin_read, columns, query_fleet, read_runs};
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{DatabaseConnection, DbErr, EntityTrait, QueryResult, Statement};

use super::{
    AmountDue, BillingRole, Daemon, Expected, HaltView, HoldSummary, Liveness, PanelStatus, RunView, Status,
    Uncharged,
    jobs::{ConfiguredJobs, read_job_views},
    panel_presence::PanelPresence,
    prepaid, problems,
};
use crate::{
    exit::Failure,
    holds::{advice, is_accepted},
    panel_database::PanelDatabase,
};

/// Debts that were closed without a charge are shown for this long.
const UNCHARGED_SHOWN: TimeDelta = TimeDelta::days(30);
/// The number of daemons that are shown, the newest.
const DAEMONS: u64 = 100;

/// Reads the status of billing on the opened database, and compares it with what the configuration expects.
pub async fn read(opened: &PanelDatabase, expected: &Expected) -> Result<Status, Failure> {
    let failed = |error| Failure::database("read the status of billing", &error);
    let PanelDatabase { db, panel } = opened;
    let biller = Biller::new(db.clone(), *panel, BillingSettings::default());
    let observed_at = biller.now().await.map_err(failed)?;
    let configured = ConfiguredJobs { specs: &expected.jobs, is_complete: !expected.jobs.is_empty() };
    // Concurrently, because most of the time is spent on waiting for the database.
    let tables = Box::pin(async {
        let read = tokio::try_join!(
            read_job_views(db, configured, observed_at),
            last_run_with_totals(db, &biller),
            last_done(db, BILLING_JOB),
            fencing_row(db),
            holds(db),
            last_audit(db, expected),
            prepaid::read(db),
            uncharged(db, observed_at),
        );
        read.map_err(failed)
    });
    let (presence, schema, tables) = tokio::try_join!(PanelPresence::detect(opened), schema(db), tables)?;
    let (jobs, last_run, last_done, fencing, holds, last_audit, prepaid, uncharged) = tables;
    let billing = jobs.iter().find(|job| job.job == BILLING_JOB);
    // The fencing row alone does not answer it: it is renewed while a spike waits for an approval, and cleared at a clean stop.
    let waits = last_run.as_ref().is_some_and(|run| run.billing_details().pending_amounts().is_some());
    let reported = fencing.as_ref().filter(|_| !waits).and_then(|row| row.last_success_at);
    let last_success_at = match reported {
        Some(Instant(at)) => Some(at),
        None => last_done.map(|row| row.run.finished_at),
    };
    let arrears = holds.iter().find(|held| held.reason == Reason::InsufficientBalance.as_str());
    let bills_now = billing.and_then(|job| job.lease.as_ref()).map(|lease| lease.holder.as_str());
    let daemons = daemons(db, observed_at, bills_now).await.map_err(failed)?;
    let mut status = Status {
        ok: false,
        problems: Vec::new(),
        observed_at,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        engine: engine(db),
        schema,
        halt: fencing.as_ref().and_then(|row| row.halt.as_deref()).map(halt).transpose().map_err(failed)?,
        panel: PanelStatus {
            generation: presence.generation.to_string(),
            present: presence.present,
            billing_off: expected.panel_billing == crate::config::PanelBilling::Off,
            guard: presence.panel_guard.into(),
        },
        last_success_at,
        hand_back_after_seconds: fencing
            .map_or(HAND_BACK_AFTER.as_secs(), |row| row.hand_back_after_seconds.unsigned_abs()),
        last_audit,
        arrears: arrears.map(|held| held.owed.clone()).unwrap_or_default(),
        has_billing: has_billing(expected, &daemons, last_success_at.is_some() || last_run.is_some()),
        daemons,
        jobs,
        holds,
        prepaid,
        uncharged,
        last_run,
    };
    status.problems = problems(&status, expected);
    status.ok = status.problems.is_empty();
    Ok(status)
}

/// Whether billing is judged: the configuration has it, or a daemon that was not stopped does. Without a configuration and without a
/// daemon that is alive, it is judged as well.
fn has_billing(expected: &Expected, daemons: &[Daemon], has_billed: bool) -> bool {
    let by_daemon = daemons.iter().any(|daemon| daemon.has_billing && daemon.liveness != Liveness::Stopped);
    let is_unknown = || has_billed || !daemons.iter().any(|daemon| daemon.liveness.is_alive());
    by_daemon || expected.has_billing().unwrap_or_else(is_unknown)
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

fn halt(text: &str) -> Result<HaltView, DbErr> {
    Halt::of_json(text).map(HaltView::from)
}

async fn fencing_row(db: &DatabaseConnection) -> Result<Option<scheduler_fencing::Model>, DbErr> {
    let txn = begin_read(db, StatementLimit::Fleet).await?;
    let fencing = scheduler_fencing::Entity::find_by_id(BILLING_JOB).one(&txn).await?;
    txn.commit().await?;
    Ok(fencing)
}

/// Reads the newest runs, of one job or of all.
pub async fn runs(db: &DatabaseConnection, job: Option<&str>, limit: u32) -> Result<Vec<RunView>, Failure> {
    let newest = RunFilter { job: job.map(str::to_owned), limit, ..RunFilter::default() };
    let runs = read_runs(db, &newest).await;
    let runs = runs.map_err(|error| Failure::database("read the history", &error))?;
    Ok(runs.into_iter().map(RunView::from).collect())
}

async fn last_audit(db: &DatabaseConnection, expected: &Expected) -> Result<Option<RunView>, DbErr> {
    let audits = expected.jobs.iter().filter(|spec| spec.kind == AUDIT_KIND);
    let mut newest_of_each = Vec::new();
    // One query for each: the index of the history begins with the job.
    for spec in audits {
        newest_of_each.extend(last_done(db, &spec.name).await?);
    }
    Ok(newest_of_each.into_iter().max_by_key(|row| row.run.started_at).map(RunView::from))
}

async fn last_run_with_totals(db: &DatabaseConnection, biller: &Biller) -> Result<Option<RunView>, DbErr> {
    let mut last_run = last_run(db, BILLING_JOB).await?.map(RunView::from);
    if let Some(run) = &mut last_run {
        run.totals = Some(biller.totals_of(run.id).await?);
    }
    Ok(last_run)
}

/// The newest run of `job`, without records of scheduled times that had no run.
async fn last_run(db: &DatabaseConnection, job: &str) -> Result<Option<RunRow>, DbErr> {
    let newest_of = async |status| -> Result<Option<RunRow>, DbErr> {
        let newest = RunFilter { job: Some(job.to_owned()), status, limit: 1, ..RunFilter::default() };
        Ok(read_runs(db, &newest).await?.pop())
    };
    let newest = newest_of(None).await?;
    if newest.as_ref().is_none_or(|row| row.run.status.has_run()) {
        return Ok(newest);
    }
    let mut newest: Option<RunRow> = None;
    for status in RunStatus::ALL.into_iter().filter(|status| status.has_run()) {
        let found = newest_of(Some(status)).await?;
        let is_newer = |row: &RunRow| {
            newest.as_ref().is_none_or(|newest| {
                (newest.run.started_at, newest.run.id) < (row.run.started_at, row.run.id)
            })
        };
        if found.as_ref().is_some_and(is_newer) {
            newest = found;
        }
    }
    Ok(newest)
}

/// The last successful run of `job`.
async fn last_done(db: &DatabaseConnection, job: &str) -> Result<Option<RunRow>, DbErr> {
    let (job, status) = (Some(job.to_owned()), Some(RunStatus::Done));
    let done = RunFilter { job, status, limit: 1, ..RunFilter::default() };
    Ok(read_runs(db, &done).await?.pop())
}

/// Returns the number of daemons that are alive.
pub(crate) async fn daemons_alive(opened: &PanelDatabase) -> Result<usize, Failure> {
    let failed = |error| Failure::database("read which daemons are alive", &error);
    let observed_at = opened.now().await.map_err(failed)?;
    let daemons = daemons(&opened.db, observed_at, None).await.map_err(failed)?;
    Ok(daemons.iter().filter(|daemon| daemon.liveness.is_alive()).count())
}

async fn daemons(
    db: &DatabaseConnection,
    observed_at: DateTime<Utc>,
    bills_now: Option<&str>,
) -> Result<Vec<Daemon>, DbErr> {
    let backend = db.get_database_backend();
    let at = |column| format!("{} AS {column}", micros(backend, column));
    let sql = format!(
        "SELECT daemon_instance_id, status, error_message, metadata, {}, {}, {}, {}
           FROM billing_daemon_status ORDER BY id DESC LIMIT {DAEMONS}",
        at("updated_at"),
        at("created_at"),
        at("heartbeat_at"),
        at("started_at"),
    );
    let rows = query_fleet(db, Statement::from_string(backend, sql)).await?;
    rows.iter().map(|row| daemon(row, observed_at, bills_now)).collect()
}

/// Decodes the row of a daemon, which may be another program: text that cannot be decoded is shown as it is, or counts as missing.
fn daemon(row: &QueryResult, observed_at: DateTime<Utc>, bills_now: Option<&str>) -> Result<Daemon, DbErr> {
    let at = |column| -> Result<Option<DateTime<Utc>>, DbErr> {
        Ok(row.try_get::<Option<i64>>("", column)?.and_then(DateTime::from_timestamp_micros))
    };
    let metadata = columns::json(row, "metadata", "billing_daemon_status.metadata").unwrap_or_default();
    let text = |key: &str| metadata.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
    let daemon_id = columns::lossy(row, "daemon_instance_id");
    let last_seen_at = at("updated_at")?.or(at("created_at")?);
    let silence = last_seen_at.map(|at| (observed_at - at).to_std().unwrap_or_default());
    let liveness = match columns::lossy(row, "status").as_str() {
        "stopped" => Liveness::Stopped,
        _ if silence.is_none_or(|silence| silence > ALIVE_WITHIN) => Liveness::Dead,
        "error" => Liveness::Failing,
        _ => Liveness::Alive,
    };
    // A daemon without a billing job reports no interval.
    let has_billing = metadata.get("billingIntervalMinutes").is_some_and(serde_json::Value::is_u64);
    let billing_role = match liveness {
        _ if bills_now == Some(daemon_id.as_str()) => BillingRole::Active,
        Liveness::Alive | Liveness::Failing if has_billing => BillingRole::Standby,
        _ => BillingRole::None,
    };
    Ok(Daemon {
        daemon_id,
        host: text("hostname"),
        version: text("version"),
        liveness,
        last_seen_at,
        heartbeat_at: at("heartbeat_at")?,
        started_at: at("started_at")?,
        billing_role,
        has_billing,
        clock_offset_ms: metadata.get(CLOCK_OFFSET).and_then(serde_json::Value::as_i64),
        error: Some(columns::lossy(row, "error_message"))
            .filter(|error| !error.is_empty() && liveness != Liveness::Stopped),
    })
}

async fn holds(db: &DatabaseConnection) -> Result<Vec<HoldSummary>, DbErr> {
    let backend = db.get_database_backend();
    // A sum may exceed the range of its addends, so amounts are added up in two parts.
    let sql = format!(
        "SELECT h.reason, h.currency, min(h.opened_at) AS since, count(*) AS instances,
                count(*) - count(h.amount_due) AS unpriced,
                CAST(sum(CASE WHEN {} THEN 1 ELSE 0 END) AS bigint) AS accepted,
                CAST(coalesce(sum(h.hours_due), 0) AS bigint) AS hours,
                CAST(sum(h.amount_due / 10000) AS bigint) AS amount,
                CAST(sum(h.amount_due % 10000) AS bigint) AS fraction
           FROM billing_holds h WHERE h.closed_at IS NULL GROUP BY h.reason, h.currency ORDER BY h.reason, h.currency",
        is_accepted(backend)
    );
    let rows = query_fleet(db, Statement::from_string(backend, sql)).await?;
    let mut all: Vec<HoldSummary> = Vec::new();
    for row in &rows {
        let count = |column| row.try_get::<i64>("", column).map(i64::unsigned_abs);
        let Instant(since) = row.try_get("", "since")?;
        let reason = columns::lossy(row, "reason");
        if all.last().is_none_or(|held| held.reason != reason) {
            let advice = advice(&reason).to_owned();
            all.push(HoldSummary { reason, since, owed: AmountDue::default(), accepted: 0, advice });
        }
        let Some(held) = all.last_mut() else { continue };
        held.since = held.since.min(since);
        held.accepted += count("accepted")?;
        held.owed.instances += count("instances")?;
        held.owed.hours += count("hours")?;
        held.owed.unpriced += count("unpriced")?;
        if let Some(amount) = row.try_get::<Option<i64>>("", "amount")? {
            let fraction: i64 = row.try_get("", "fraction")?;
            let currency = columns::lossy(row, "currency").parse().unwrap_or(Currency::NONE);
            held.owed.amounts.add(currency, Money(amount.saturating_mul(10_000).saturating_add(fraction)));
        }
    }
    Ok(all)
}

async fn uncharged(db: &DatabaseConnection, observed_at: DateTime<Utc>) -> Result<Vec<Uncharged>, DbErr> {
    let since = (observed_at - UNCHARGED_SHOWN).timestamp_micros();
    let txn = begin_read(db, StatementLimit::Fleet).await?;
    let closed = billing_jobs::uncharged::uncharged(&txn, Closed::Since(since)).await?;
    txn.commit().await?;
    let shown = |of_one: billing_jobs::uncharged::Uncharged| Uncharged {
        reason: of_one.reason,
        owed: of_one.debt.into(),
    };
    Ok(closed.into_iter().map(shown).collect())
}
