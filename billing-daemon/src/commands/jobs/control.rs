//! What is asked of a job: `jobs pause`, `resume`, `cancel`, `reset`, `trigger` and `replay`.

use std::time::{Duration, Instant};

use billing_scheduler::{ControlReceipt, Pause, RunFilter, RunRow, RunStatus};
use chrono::{DateTime, Utc};
use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::{JobSession, store_failure};
use crate::{
    commands::{
        args::parse_time,
        complain,
        runs::{run_in_json, sentence},
    },
    exit::{Exit, Failure},
    format,
    output::{json as say_json, line as say},
    status::{daemons_alive, jobs::JobOverview},
};

/// The arguments of every request to a job.
#[derive(Debug, Args)]
pub(crate) struct RequestArgs {
    /// The job's name
    #[arg(value_name = "NAME")]
    job: String,
    /// Author of the request, for the audit log [default: the user and the host]
    #[arg(long = "as", value_name = "NAME")]
    by: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl RequestArgs {
    pub(super) fn by(&self) -> Option<&str> {
        self.by.as_deref()
    }
}

/// The arguments of a request that needs a reason.
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    pub(super) request: RequestArgs,
    /// Reason, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// The arguments of a request that may have a reason.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    #[command(flatten)]
    pub(super) request: RequestArgs,
    /// Reason, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TriggerArgs {
    #[command(flatten)]
    pub(super) request: RequestArgs,
    /// Reason, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Run the job although it is paused
    #[arg(long)]
    force: bool,
    /// Wait for the run and print its result; exit 1 unless it is done
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    pub(super) request: RequestArgs,
    /// The scheduled time
    #[arg(value_name = "TIME", value_parser = parse_time)]
    scheduled_at: DateTime<Utc>,
    /// Run it although it is done already
    #[arg(long)]
    again: bool,
    /// Reason, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Wait for the run and print its result; exit 1 unless it is done
    #[arg(long)]
    wait: bool,
}

/// What becomes of a request without a daemon.
const NO_DAEMON: &str =
    "no daemon is alive: start one with `billing-daemon run` within an hour, or the request expires";
/// How often the answer is looked for.
const LOOK: Duration = Duration::from_millis(200);
/// How long a run that is waited for may take if the configuration does not say.
const PATIENCE: Duration = Duration::from_hours(1);
/// What a run may take longer than its timeout: it is begun within seconds, and abandoned if it does not stop.
const MARGIN: Duration = Duration::from_mins(2);

pub(super) async fn pause(desk: &JobSession, options: &PauseArgs) -> Result<(), Failure> {
    let name = &options.request.job;
    desk.job(name).await?;
    let receipt = desk.control.pause(name, &options.reason).await.map_err(store_failure)?;
    told(
        &options.request,
        receipt,
        "paused: a run under way goes on, and nothing begins until `jobs resume`",
    );
    Ok(())
}

pub(super) async fn resume(desk: &JobSession, options: &CancelArgs) -> Result<(), Failure> {
    let name = &options.request.job;
    desk.job(name).await?;
    let receipt = desk.control.resume(name, options.reason.as_deref()).await.map_err(store_failure)?;
    told(&options.request, receipt, "resumed: what came meanwhile is recorded as paused and not run");
    Ok(())
}

pub(super) async fn cancel(desk: &JobSession, options: &CancelArgs) -> Result<(), Failure> {
    let name = &options.request.job;
    desk.job(name).await?;
    let receipt = desk.control.cancel(name, options.reason.as_deref()).await.map_err(store_failure)?;
    told(&options.request, receipt, "cancelled: the run under way is asked to stop, and is not run again");
    Ok(())
}

pub(super) async fn reset(desk: &JobSession, options: &PauseArgs) -> Result<(), Failure> {
    let name = &options.request.job;
    desk.job(name).await?;
    let receipt = desk.control.reset(name, &options.reason).await.map_err(store_failure)?;
    told(&options.request, receipt, "reset: a daemon continues its schedule from the present within 2 s");
    Ok(())
}

/// Says what became of a request.
fn told(asked: &RequestArgs, receipt: ControlReceipt, done: &str) {
    let (changed, why) = match receipt {
        ControlReceipt::Accepted => (true, done.to_owned()),
        ControlReceipt::Unchanged(why) => (false, format!("nothing to do: {why}")),
    };
    if asked.json {
        say_json(&json!({ "job": asked.job, "changed": changed, "about": why }));
    } else {
        say(format!("{}: {why}", asked.job));
    }
}

pub(super) async fn trigger(desk: &JobSession, options: &TriggerArgs) -> Result<(), Failure> {
    let job = desk.job(&options.request.job).await?;
    if let Some(pause) = job.paused.as_ref().filter(|_| !options.force) {
        return Err(Failure::new(Exit::Usage, needs_force(&job.name, pause)));
    }
    let id = desk.control.run_now(&job.name, options.reason.as_deref()).await.map_err(store_failure)?;
    asked_for(desk, &job, &options.request, options.wait, id).await
}

pub(super) async fn replay(desk: &JobSession, options: &ReplayArgs) -> Result<(), Failure> {
    let job = desk.job(&options.request.job).await?;
    let at = options.scheduled_at;
    if at > desk.clock.now() {
        return Err(Failure::new(Exit::Usage, format!("{} is still to come", format::instant(at))));
    }
    let filter = RunFilter { job: Some(job.name.clone()), scheduled_at: Some(at), ..RunFilter::default() };
    let rows = desk.runs(&filter).await?;
    if let Some(done) =
        rows.iter().find(|row| row.run.status == RunStatus::Done && row.run.scheduled_at == at)
        && !options.again
    {
        let message = format!(
            "{} is done, by run {}: say --again to run it once more",
            format::instant(at),
            done.run.id
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    let is_scheduled = job.spec.as_ref().is_none_or(|spec| super::explain::is_time_of(&spec.schedule, at));
    if rows.is_empty() && !is_scheduled {
        let message = format!(
            "{} is no scheduled time of `{}`: `jobs next` and `runs list` show some",
            format::instant(at),
            job.name
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    let id = desk.control.replay(&job.name, at, options.reason.as_deref()).await.map_err(store_failure)?;
    asked_for(desk, &job, &options.request, options.wait, id).await
}

/// Reports what was requested, or waits until it has ended.
async fn asked_for(
    desk: &JobSession,
    job: &JobOverview,
    asked: &RequestArgs,
    wait: bool,
    id: Uuid,
) -> Result<(), Failure> {
    let daemons = daemons_alive(&desk.opened).await?;
    if !wait {
        if asked.json {
            say_json(&json!({ "job": job.name, "request": id, "daemons_alive": daemons }));
        } else if daemons > 0 {
            say(format!("{}: requested as {id}; a daemon that runs the job begins within 2 s", job.name));
        } else {
            say(format!("{}: requested as {id}; {NO_DAEMON}", job.name));
        }
        return Ok(());
    }
    if daemons == 0 {
        complain(NO_DAEMON);
    }
    let patience = job.spec.as_ref().map_or(PATIENCE, |spec| spec.timeout) + MARGIN;
    let Some(row) = answer(desk, id, patience).await? else {
        let seconds = patience.as_secs();
        let message = format!(
            "no run has answered request {id} in {seconds} s; it stays open for an hour, and `jobs cancel {}` withdraws it",
            job.name
        );
        return Err(Failure::new(Exit::TryAgain, message));
    };
    if asked.json {
        say_json(&json!({ "job": job.name, "request": id, "run": run_in_json(&row) }));
    } else {
        say(sentence(&row));
    }
    if row.run.status == RunStatus::Done { Ok(()) } else { Err(Failure::silent(Exit::Negative)) }
}

/// Why a paused job is not run.
pub(in crate::commands) fn needs_force(job: &str, pause: &Pause) -> String {
    format!("job `{job}` is {pause}: `--force` runs it nevertheless, and `jobs resume {job}` ends the pause")
}

async fn answer(desk: &JobSession, id: Uuid, patience: Duration) -> Result<Option<RunRow>, Failure> {
    let (filter, began) = (RunFilter { request_id: Some(id), ..RunFilter::default() }, Instant::now());
    let mut told = false;
    while began.elapsed() < patience {
        if let Some(row) = desk.runs(&filter).await?.pop() {
            return Ok(Some(row));
        }
        if !told && began.elapsed() > Duration::from_secs(5) {
            complain("still waiting: the job is at another run, or no daemon that has it is alive");
            told = true;
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(None)
}
