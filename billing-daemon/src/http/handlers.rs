//! One answer a path.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use billing_jobs::{BILLING_JOB, PANEL_TAKEOVER_AFTER, billing::Totals};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{AppState, gauges};
use crate::{
    exit::Failure,
    status::{JobStatus, Liveness, RunStatus, Status, runs as read_runs},
};

type ApiResult<T> = Result<T, Unavailable>;

/// Something is wrong with the database. The sentence is for the log alone.
pub(super) struct Unavailable;

impl From<Failure> for Unavailable {
    fn from(failure: Failure) -> Self {
        tracing::warn!("a question over HTTP was not answered: {}", failure.message);
        Self
    }
}

impl IntoResponse for Unavailable {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer as it should: see the log\n")
            .into_response()
    }
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether billing can work: the database answers, its schema fits, and billing has worked lately or is about to.
#[utoipa::path(
    get,
    path = "/readyz",
    responses((status = 200, body = String), (status = 503, body = String, description = "What is wrong, a line each"))
)]
pub(super) async fn readyz(State(shared): State<Arc<AppState>>) -> ApiResult<Response> {
    migration::check(&shared.opened.db).await.map_err(Failure::from)?;
    let status = shared.status().await?;
    let able = |kind: &str| matches!(kind, "held" | "daemon_dead" | "no_daemon");
    // A machine that is held, and another daemon's death, do not keep this one from billing; and this one lives.
    let wrong: Vec<_> = status.problems.iter().filter(|problem| !able(problem.kind)).collect();
    // Before the first run nothing has worked yet, and nothing has failed.
    let fresh = status.last_run.is_none();
    let wrong = wrong.into_iter().filter(|problem| !(fresh && problem.kind == "billing_silent"));
    let lines: Vec<_> = wrong.map(|problem| format!("{}: {}\n", problem.kind, problem.message)).collect();
    Ok(if lines.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, lines.concat()).into_response()
    })
}

/// For Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String), (status = 503, body = String)))]
pub(super) async fn metrics(State(shared): State<Arc<AppState>>) -> Response {
    // What this process counted is worth telling also while the database is away.
    if let Ok(status) = shared.status().await {
        gauges::set_gauges(&status, shared.expected().billing_interval);
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, shared.metrics.render()).into_response()
}

/// How billing stands: what `billing-daemon status --json` prints.
#[utoipa::path(get, path = "/api/status", responses((status = 200, body = Status), (status = 503, body = String)))]
pub(super) async fn status(State(shared): State<Arc<AppState>>) -> ApiResult<Json<Status>> {
    Ok(Json(Status::clone(&*shared.status().await?)))
}

/// The jobs, how late they are, and how their last runs ended.
#[utoipa::path(get, path = "/api/jobs", responses((status = 200, body = Vec<JobStatus>), (status = 503, body = String)))]
pub(super) async fn jobs(State(shared): State<Arc<AppState>>) -> ApiResult<Json<Vec<JobStatus>>> {
    Ok(Json(shared.status().await?.jobs.clone()))
}

/// Which runs.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Of this job alone.
    job: Option<String>,
    /// So many, the newest: 50, and 500 at most.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 4_294_967_295_i64)]
    limit: Option<u32>,
}

/// The history, the newest first.
#[utoipa::path(
    get,
    path = "/api/runs",
    params(Which),
    responses((status = 200, body = Vec<RunStatus>), (status = 400, body = String), (status = 503, body = String))
)]
pub(super) async fn runs(
    State(shared): State<Arc<AppState>>,
    Query(which): Query<Which>,
) -> ApiResult<Json<Vec<RunStatus>>> {
    let limit = which.limit.unwrap_or(50).clamp(1, 500);
    Ok(Json(read_runs(&shared.opened.db, which.job.as_deref(), limit).await?))
}

/// The answer of a G1 panel about its daemon, with the panel's names.
#[derive(Serialize, ToSchema)]
pub(super) struct PanelHealth {
    /// Always true: a database that does not answer is a 503.
    success: bool,
    /// When this was read.
    timestamp: DateTime<Utc>,
    /// The daemons as one.
    daemon: PanelDaemon,
}

/// The daemons as one, as the panel's page shows them.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PanelDaemon {
    /// `running`, `stopped` or `error`; `unknown` if there is no daemon.
    status: &'static str,
    /// When billing last ran.
    last_run: Option<DateTime<Utc>>,
    /// Whether that run is done: not if it failed or was interrupted.
    last_run_success: bool,
    /// How many instances it charged.
    instances_billed: u64,
    /// How much.
    total_amount: f64,
    /// For how many hours.
    total_hours: u64,
    /// When billing runs next, while a daemon is active.
    next_scheduled_run: Option<DateTime<Utc>>,
    /// For how long the daemon with the newest heartbeat has run, while it is active.
    uptime_minutes: Option<u64>,
    /// Whether the newest heartbeat is too old for the panel to wait, or missing.
    is_stale: bool,
    /// Whether the newest heartbeat or the last run is too old, or both are missing.
    warning_threshold_exceeded: bool,
    /// Why a daemon, or the last run, fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<String>,
}

/// The health of billing as the original's panel answers it.
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
    let any = |life| status.daemons.iter().any(|daemon| daemon.has_billing && daemon.liveness == life);
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
    let billing = status.jobs.iter().find(|job| job.name == BILLING_JOB);
    let started = newest.and_then(|daemon| daemon.started_at).filter(|_| is_active);
    PanelDaemon {
        status: word,
        last_run,
        last_run_success: run.is_some_and(|run| run.status == "done"),
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

/// This interface, described.
#[utoipa::path(get, path = "/api/openapi.json", responses((status = 200, description = "An OpenAPI 3.1 document")))]
pub(super) async fn openapi() -> Response {
    Json(super::document()).into_response()
}

pub(super) async fn nothing() -> Response {
    (StatusCode::NOT_FOUND, "there is nothing here: /api/openapi.json lists what there is\n").into_response()
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
        for (heartbeat, finished, ended, word, success, stale, warning) in [
            (Some(1), Some(10), "done", "running", true, false, false),
            (Some(1), Some(10), "interrupted", "running", false, false, false),
            (Some(1), Some(10), "dead", "running", false, false, false),
            (Some(1), Some(90), "done", "running", true, false, true),
            (Some(89), Some(89), "done", "running", true, false, false),
            (Some(90), Some(10), "done", "running", true, true, true),
            // Withdrawn, or not written yet.
            (None, Some(10), "done", "running", true, true, false),
            (None, None, "", "running", false, true, true),
            (Some(-1), None, "", "running", false, false, false),
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
            status.jobs = vec![JobStatus { due_at: Some(minutes_ago(-50)), ..job(None) }];
            let amount = "0.06".parse().expect("an amount");
            let mut totals = Totals { charged: 2, charges: 2, hours: 6, ..Totals::default() };
            totals.currencies.add(Currency::USD, CurrencyTotals { charges: 2, hours: 6, amount });
            status.last_run = finished.map(|minutes| RunStatus {
                finished_at: minutes_ago(minutes),
                totals: Some(totals),
                error: (ended == "dead").then(|| "refused".to_owned()),
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
                error_message: (ended == "dead").then(|| "refused".to_owned()),
            };
            assert_eq!(panel_daemon(&status), expected, "{heartbeat:?}, {finished:?}, {ended}");
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
