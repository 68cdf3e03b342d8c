//! What is asked of a job: `jobs pause`, `resume`, `cancel`, `reset`, `trigger` and `replay`.

use std::time::{Duration, Instant};

use billing_scheduler::{ControlReceipt, Pause, RunFilter, RunRow, RunStatus};
use serde_json::json;
use uuid::Uuid;

use super::{Session, shown, store_failure};
use crate::{
    commands::{
        cli::{self, Asked, Cancel, Replay, Trigger},
        complain,
        runs::{run_in_json, sentence},
    },
    exit::{Exit, Failure},
    output::{json as say_json, line as say},
    status::{daemons_alive, jobs::JobOverview},
};

/// What becomes of a request without a daemon.
const NO_DAEMON: &str =
    "no daemon is alive: start one with `billing-daemon run` within an hour, or the request expires";
/// How often the answer is looked for.
const LOOK: Duration = Duration::from_millis(200);
/// How long a run that is waited for may take if the configuration does not say.
const PATIENCE: Duration = Duration::from_hours(1);
/// What a run may take longer than its timeout: it is begun within seconds, and abandoned if it does not stop.
const MARGIN: Duration = Duration::from_mins(2);

pub(super) async fn pause(desk: &Session, options: &cli::Pause) -> Result<(), Failure> {
    let name = &options.asked.job;
    desk.job(name).await?;
    let receipt = desk.control.pause(name, &options.reason).await.map_err(store_failure)?;
    told(&options.asked, receipt, "paused: a run under way goes on, and nothing begins until `jobs resume`");
    Ok(())
}

pub(super) async fn resume(desk: &Session, options: &Cancel) -> Result<(), Failure> {
    let name = &options.asked.job;
    desk.job(name).await?;
    let receipt = desk.control.resume(name, options.reason.as_deref()).await.map_err(store_failure)?;
    told(&options.asked, receipt, "resumed: what came meanwhile is recorded as paused and not run");
    Ok(())
}

pub(super) async fn cancel(desk: &Session, options: &Cancel) -> Result<(), Failure> {
    let name = &options.asked.job;
    desk.job(name).await?;
    let receipt = desk.control.cancel(name, options.reason.as_deref()).await.map_err(store_failure)?;
    told(&options.asked, receipt, "cancelled: the run under way is asked to stop, and is not run again");
    Ok(())
}

pub(super) async fn reset(desk: &Session, options: &cli::Pause) -> Result<(), Failure> {
    let name = &options.asked.job;
    desk.job(name).await?;
    let receipt = desk.control.reset(name, &options.reason).await.map_err(store_failure)?;
    told(&options.asked, receipt, "reset: a daemon continues its schedule from the present within 2 s");
    Ok(())
}

/// Says what became of a request.
fn told(asked: &Asked, receipt: ControlReceipt, done: &str) {
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

pub(super) async fn trigger(desk: &Session, options: &Trigger) -> Result<(), Failure> {
    let job = desk.job(&options.asked.job).await?;
    if let Some(pause) = job.paused.as_ref().filter(|_| !options.force) {
        return Err(Failure::new(Exit::Usage, needs_force(&job.name, pause)));
    }
    let id = desk.control.run_now(&job.name, options.reason.as_deref()).await.map_err(store_failure)?;
    asked_for(desk, &job, &options.asked, options.wait, id).await
}

pub(super) async fn replay(desk: &Session, options: &Replay) -> Result<(), Failure> {
    let job = desk.job(&options.asked.job).await?;
    let at = options.at()?;
    if at > desk.clock.now() {
        return Err(Failure::new(Exit::Usage, format!("{} UTC is still to come", shown(at))));
    }
    let filter = RunFilter { job: Some(job.name.clone()), scheduled_at: Some(at), ..RunFilter::default() };
    let rows = desk.runs(&filter).await?;
    if let Some(done) =
        rows.iter().find(|row| row.run.status == RunStatus::Done && row.run.scheduled_at == at)
        && !options.again
    {
        let message =
            format!("{} UTC is done, by run {}: say --again to run it once more", shown(at), done.run.id);
        return Err(Failure::new(Exit::Usage, message));
    }
    let is_scheduled = job.spec.as_ref().is_none_or(|spec| super::explain::is_time_of(&spec.schedule, at));
    if rows.is_empty() && !is_scheduled {
        let message = format!(
            "{} UTC is no scheduled time of `{}`: `jobs next` and `runs list` show some",
            shown(at),
            job.name
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    let id = desk.control.replay(&job.name, at, options.reason.as_deref()).await.map_err(store_failure)?;
    asked_for(desk, &job, &options.asked, options.wait, id).await
}

/// Reports what was requested, or waits until it has ended.
async fn asked_for(
    desk: &Session,
    job: &JobOverview,
    asked: &Asked,
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

async fn answer(desk: &Session, id: Uuid, patience: Duration) -> Result<Option<RunRow>, Failure> {
    let (filter, began) = (RunFilter { request: Some(id), ..RunFilter::default() }, Instant::now());
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
