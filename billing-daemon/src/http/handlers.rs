//! One handler for each path.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use billing_jobs::{BILLING_JOB, PANEL_TAKEOVER_AFTER, billing::Totals};
use billing_scheduler::RunStatus;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{AppState, gauges};
use crate::{
    exit::Failure,
    status::{JobView, Liveness, RunView, Status, runs as read_runs},
};

type ApiResult<T> = Result<T, Unavailable>;

/// The database failed. The error is logged, and not sent.
pub(super) struct Unavailable;

impl From<Failure> for Unavailable {
    fn from(failure: Failure) -> Self {
        tracing::warn!("HTTP request failed: {}", failure.message);
        Self
    }
}

impl IntoResponse for Unavailable {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, "the database failed: see the log\n").into_response()
    }
}

/// Whether the process is alive.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether billing can work: the database answers, its schema fits, and billing has succeeded recently or is about to run.
#[utoipa::path(
    get,
    path = "/readyz",
    responses((status = 200, body = String), (status = 503, body = String, description = "The problems, one on each line"))
)]
pub(super) async fn readyz(State(shared): State<Arc<AppState>>) -> ApiResult<Response> {
    migration::check(&shared.opened.db).await.map_err(Failure::from)?;
    let status = shared.status().await?;
    let is_tolerable =
        |kind: &str| matches!(kind, "held" | "daemon_dead" | "no_daemon" | "clock_offset" | "delivery_dead");
    // A held instance, another dead daemon, a wrong clock or a dead delivery does not prevent this one from billing, and this one is alive.
    let serious: Vec<_> = status.problems.iter().filter(|problem| !is_tolerable(problem.kind)).collect();
    // Before the first run nothing has succeeded yet, and nothing has failed.
    let is_new = status.last_run.is_none();
    let serious = serious.into_iter().filter(|problem| !(is_new && problem.kind == "billing_silent"));
    let lines: Vec<_> = serious.map(|problem| format!("{}: {}\n", problem.kind, problem.message)).collect();
    Ok(if lines.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, lines.concat()).into_response()
    })
}

/// The metrics in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String), (status = 503, body = String)))]
pub(super) async fn metrics(State(shared): State<Arc<AppState>>) -> Response {
    // The counters of this process are useful even if the database is not available.
    if let Ok(status) = shared.status().await {
        gauges::set_gauges(&status, shared.expected().billing_interval);
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, shared.metrics.render()).into_response()
}

/// The status of billing, as `billing-daemon status --json` prints it.
#[utoipa::path(get, path = "/api/status", responses((status = 200, body = Status), (status = 503, body = String)))]
pub(super) async fn status(State(shared): State<Arc<AppState>>) -> ApiResult<Json<Status>> {
    Ok(Json(Status::clone(&*shared.status().await?)))
}

/// The jobs, as `billing-daemon jobs list --json` prints them.
#[utoipa::path(get, path = "/api/jobs", responses((status = 200, body = Vec<JobView>), (status = 503, body = String)))]
pub(super) async fn jobs(State(shared): State<Arc<AppState>>) -> ApiResult<Json<Vec<JobView>>> {
    Ok(Json(shared.status().await?.jobs.clone()))
}

/// The selected runs.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct RunsQuery {
    /// Only runs of this job.
    job: Option<String>,
    /// The number of runs, the newest: 50 by default, at most 500.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 4_294_967_295_i64)]
    limit: Option<u32>,
}

/// The history, newest first, as `billing-daemon runs list --json` prints it.
#[utoipa::path(
    get,
    path = "/api/runs",
    params(RunsQuery),
    responses((status = 200, body = Vec<RunView>), (status = 400, body = String), (status = 503, body = String))
)]
pub(super) async fn runs(
    State(shared): State<Arc<AppState>>,
    Query(query): Query<RunsQuery>,
) -> ApiResult<Json<Vec<RunView>>> {
    let limit = query.limit.unwrap_or(50).clamp(1, 500);
    Ok(Json(read_runs(&shared.opened.db, query.job.as_deref(), limit).await?))
}

/// The health of the daemon with the names of the G1 panel.
#[derive(Serialize, ToSchema)]
pub(super) struct PanelHealth {
    /// Always true: a database failure is a 503.
    success: bool,
    /// When the status was read.
    timestamp: DateTime<Utc>,
    /// The daemons as one daemon.
    daemon: PanelDaemon,
}

/// The daemons as one daemon, as the panel's page shows it.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PanelDaemon {
    /// `running`, `stopped` or `error`; `unknown` if there is no daemon.
    status: &'static str,
    /// When the last billing run ended.
    last_run: Option<DateTime<Utc>>,
    /// Whether that run succeeded.
    last_run_success: bool,
    /// The number of instances that it charged.
    instances_billed: u64,
    /// The charged amount, in the currency with the most charges.
    total_amount: f64,
    /// The number of charged hours.
    total_hours: u64,
    /// The next scheduled billing run, while a daemon is active.
    next_scheduled_run: Option<DateTime<Utc>>,
    /// The uptime of the daemon with the newest heartbeat, while it is active.
    uptime_minutes: Option<u64>,
    /// Whether the newest heartbeat is missing or so old that the panel bills.
    is_stale: bool,
    /// Whether the newest heartbeat or the last run is too old, or both are missing.
    warning_threshold_exceeded: bool,
    /// The error of a daemon or of the last run.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<String>,
}

/// The health of billing in the form of the panel's own endpoint.
#[utoipa::path(
    get,
    path = "/api/health/billing-daemon",
    responses((status = 200, body = PanelHealth), (status = 503, body = String))
)]
pub(super) async fn panel_health(State(shared): State<Arc<AppState>>) -> ApiResult<Json<PanelHealth>> {
    let status = shared.status().await?;
    Ok(Json(PanelHealth { success: true, timestamp: status.observed_at, daemon: panel_daemon(&status) }))
}

fn panel_daemon(status: &Status) -> PanelDaemon {
    let is_fresh = |at: DateTime<Utc>| {
        (status.observed_at - at).to_std().is_ok_and(|age| age < PANEL_TAKEOVER_AFTER)
            || at > status.observed_at
    };
    let any =
        |liveness| status.daemons.iter().any(|daemon| daemon.has_billing && daemon.liveness == liveness);
    let word = match (any(Liveness::Alive), any(Liveness::Failing), status.daemons.is_empty()) {
        (true, _, _) => "running",
        (false, true, _) => "error",
        (false, false, true) => "unknown",
        (false, false, false) => "stopped",
    };
    let newest = status.daemons.iter().max_by_key(|daemon| daemon.heartbeat_at);
    let heartbeat = newest.and_then(|daemon| daemon.heartbeat_at);
    let is_active = heartbeat.is_some_and(is_fresh);
    let run = status.last_run.as_ref();
    let totals = run.and_then(|run| run.totals.as_ref());
    let last_run = run.map(|run| run.finished_at);
    let billing = status.job(BILLING_JOB);
    let started = newest.and_then(|daemon| daemon.started_at).filter(|_| is_active);
    PanelDaemon {
        status: word,
        last_run,
        last_run_success: run.is_some_and(|run| run.status == RunStatus::Done),
        instances_billed: totals.map_or(0, |totals| totals.charged),
        total_amount: totals.map(main_amount).unwrap_or_default(),
        total_hours: totals.map_or(0, |totals| totals.hours),
        next_scheduled_run: billing.and_then(|job| job.due_at).filter(|_| is_active),
        uptime_minutes: started.map(|at| (status.observed_at - at).num_minutes().max(0).unsigned_abs()),
        is_stale: !is_active,
        warning_threshold_exceeded: match (heartbeat, last_run) {
            (None, None) => true,
            times => [times.0, times.1].into_iter().flatten().any(|at| !is_fresh(at)),
        },
        error_message: newest
            .and_then(|daemon| daemon.error.clone())
            .or_else(|| run.and_then(|run| run.error.clone())),
    }
}

/// The amount in the currency with the most charges: the panel's page has room for one.
fn main_amount(totals: &Totals) -> f64 {
    totals.currencies.main().and_then(|(_, amount)| amount.to_string().parse().ok()).unwrap_or_default()
}

/// The `OpenAPI` document of this interface.
#[utoipa::path(get, path = "/api/openapi.json", responses((status = 200, description = "An OpenAPI 3.1 document")))]
pub(super) async fn openapi(State(shared): State<Arc<AppState>>) -> Response {
    let mut document = super::document();
    if let Some(mounted) = shared.mounted.get() {
        document.paths.paths.extend(mounted.paths.clone());
    }
    Json(document).into_response()
}

pub(super) async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "not found: /api/openapi.json lists the paths\n").into_response()
}

#[cfg(test)]
mod tests {
    use billing_jobs::{billing::CurrencyTotals, currency::Currency};

    use super::*;
    use crate::status::{
        Daemon,
        testing::{daemon, healthy, job, minutes_ago, run},
    };

    #[test]
    fn panel_health_follows_heartbeat_and_last_run() {
        let (done, dead) = (RunStatus::Done, RunStatus::Dead);
        for (heartbeat, finished, ended, word, success, stale, warning) in [
            (Some(1), Some(10), done, "running", true, false, false),
            (Some(1), Some(10), RunStatus::Interrupted, "running", false, false, false),
            (Some(1), Some(10), dead, "running", false, false, false),
            (Some(1), Some(90), done, "running", true, false, true),
            (Some(89), Some(89), done, "running", true, false, false),
            (Some(90), Some(10), done, "running", true, true, true),
            // Withdrawn, or not written yet.
            (None, Some(10), done, "running", true, true, false),
            (None, None, done, "running", false, true, true),
            (Some(-1), None, done, "running", false, false, false),
        ] {
            let mut status = healthy();
            let alive = daemon(Liveness::Alive);
            let alive = Daemon {
                heartbeat_at: heartbeat.map(minutes_ago),
                started_at: Some(minutes_ago(100)),
                ..alive
            };
            let idle = Daemon { heartbeat_at: None, ..daemon(Liveness::Alive) };
            status.daemons = vec![idle, alive];
            status.jobs = vec![JobView { due_at: Some(minutes_ago(-50)), ..job(None) }];
            let amount = "0.06".parse().expect("an amount");
            let mut totals = Totals { charged: 2, charges: 2, hours: 6, ..Totals::default() };
            totals.currencies.add(Currency::USD, CurrencyTotals { charges: 2, hours: 6, amount });
            status.last_run = finished.map(|minutes| RunView {
                finished_at: minutes_ago(minutes),
                totals: Some(totals),
                error: (ended == dead).then(|| "refused".to_owned()),
                ..run(ended)
            });
            let figures = if finished.is_some() { (2, 0.06, 6) } else { (0, 0.0, 0) };
            let expected = PanelDaemon {
                status: word,
                last_run: finished.map(minutes_ago),
                last_run_success: success,
                instances_billed: figures.0,
                total_amount: figures.1,
                total_hours: figures.2,
                next_scheduled_run: (!stale).then(|| minutes_ago(-50)),
                uptime_minutes: (!stale).then_some(100),
                is_stale: stale,
                warning_threshold_exceeded: warning,
                error_message: (ended == dead).then(|| "refused".to_owned()),
            };
            assert_eq!(panel_daemon(&status), expected, "{heartbeat:?}, {finished:?}, {ended:?}");
        }
        let mut status = healthy();
        (status.daemons, status.last_run) = (Vec::new(), None);
        let nothing = panel_daemon(&status);
        assert_eq!(
            (nothing.status, nothing.is_stale, nothing.warning_threshold_exceeded),
            ("unknown", true, true)
        );
    }
}
