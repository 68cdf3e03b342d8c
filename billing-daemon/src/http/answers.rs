//! One answer a path.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Shared;
use crate::{
    exit::Failure,
    metrics as measured,
    status::{Daemon, JobStatus, RunStatus, Status, runs as read_runs},
};

type Answer<T> = Result<T, Unavailable>;

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
pub(super) async fn readyz(State(shared): State<Arc<Shared>>) -> Answer<Response> {
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
pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    // What this process counted is worth telling also while the database is away.
    if let Ok(status) = shared.status().await {
        measured::standing(&status, shared.expected().billing_interval);
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, shared.metrics.render()).into_response()
}

/// How billing stands: what `billing-daemon status --json` prints.
#[utoipa::path(get, path = "/api/status", responses((status = 200, body = Status), (status = 503, body = String)))]
pub(super) async fn status(State(shared): State<Arc<Shared>>) -> Answer<Json<Status>> {
    Ok(Json(Status::clone(&*shared.status().await?)))
}

/// The jobs, how late they are, and how their last runs ended.
#[utoipa::path(get, path = "/api/jobs", responses((status = 200, body = Vec<JobStatus>), (status = 503, body = String)))]
pub(super) async fn jobs(State(shared): State<Arc<Shared>>) -> Answer<Json<Vec<JobStatus>>> {
    Ok(Json(shared.status().await?.jobs.clone()))
}

/// Which runs.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Of this job alone.
    job: Option<String>,
    /// So many, the newest: 50, and 500 at most.
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
    State(shared): State<Arc<Shared>>,
    Query(which): Query<Which>,
) -> Answer<Json<Vec<RunStatus>>> {
    let limit = which.limit.unwrap_or(50).clamp(1, 500);
    Ok(Json(read_runs(&shared.opened.db, which.job.as_deref(), limit).await?))
}

/// What the original daemon's panel shows of its daemon.
#[derive(Serialize, ToSchema)]
pub(super) struct PanelsHealth {
    /// `running`, `stopped` or `error`; `unknown` if there is no daemon.
    status: String,
    /// When billing last ran.
    last_run_at: Option<DateTime<Utc>>,
    /// Whether it worked.
    last_run_success: Option<bool>,
    /// How many machines it charged.
    instances_billed: u64,
    /// How much.
    total_amount: f64,
    /// For how many hours.
    total_hours: u64,
}

/// The original's health: the fields that a panel of generation G1 shows.
#[utoipa::path(
    get,
    path = "/api/health/billing-daemon",
    responses((status = 200, body = PanelsHealth), (status = 503, body = String))
)]
pub(super) async fn panels_health(State(shared): State<Arc<Shared>>) -> Answer<Json<PanelsHealth>> {
    use crate::status::Life;
    let status = shared.status().await?;
    let is = |life| move |daemon: &&Daemon| daemon.state == life;
    let any = |life| status.daemons.iter().any(|daemon| is(life)(&daemon));
    let word = match (any(Life::Alive), any(Life::Failing), status.daemons.is_empty()) {
        (true, _, _) => "running",
        (false, true, _) => "error",
        (false, false, true) => "unknown",
        (false, false, false) => "stopped",
    };
    let run = status.last_run.as_ref();
    let totals = run.and_then(|run| run.totals.as_ref());
    Ok(Json(PanelsHealth {
        status: word.to_owned(),
        last_run_at: run.map(|run| run.finished_at),
        last_run_success: run.map(|run| run.status == "done"),
        instances_billed: totals.map_or(0, |totals| totals.charged),
        total_amount: totals.and_then(|totals| totals.amount.parse().ok()).unwrap_or_default(),
        total_hours: totals.map_or(0, |totals| totals.hours),
    }))
}

/// This interface, described.
#[utoipa::path(get, path = "/api/openapi.json", responses((status = 200, description = "An OpenAPI 3.1 document")))]
pub(super) async fn openapi() -> Response {
    Json(super::document()).into_response()
}

pub(super) async fn nothing() -> Response {
    (StatusCode::NOT_FOUND, "there is nothing here: /api/openapi.json lists what there is\n").into_response()
}
