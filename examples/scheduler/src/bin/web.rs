//! The scheduler next to an axum server: one page lists the jobs, another one runs a job now.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use billing_scheduler::{
    BoxError, Scheduler, daily,
    serde_json::{Value, json},
};
use tokio::net::TcpListener;

async fn jobs(State(scheduler): State<Scheduler>) -> Json<Value> {
    let jobs = scheduler.list();
    Json(jobs.iter().map(|job| json!({ "name": job.name, "schedule": job.schedule.to_string() })).collect())
}

async fn run(
    State(scheduler): State<Scheduler>,
    Path(job): Path<String>,
) -> Result<Json<Value>, (StatusCode, String)> {
    let run = scheduler.run_once(&job, Some("requested over HTTP")).await;
    let run = run.map_err(|error| (StatusCode::CONFLICT, error.to_string()))?;
    Ok(Json(json!({ "status": run.status.as_str(), "items": run.items })))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let scheduler = Scheduler::builder().job("report", daily().at("02:30"), |_| async {}).start()?;
    let app = Router::new()
        .route("/jobs", get(jobs))
        .route("/jobs/{job}/run", post(run))
        .with_state(scheduler.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    scheduler.shutdown_on_signal().await?;
    Ok(())
}
