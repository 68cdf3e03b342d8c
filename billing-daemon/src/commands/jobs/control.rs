//! `jobs pause`, `resume`, `cancel`, `reset`, `trigger` and `replay`: requests that the daemons read from the database.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use billing_scheduler::{ControlAction, ControlReceipt, RunFilter, RunStatus, Schedule, duration};
use chrono::{DateTime, Utc};
use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::{explain::is_scheduled, session::JobSession};
use crate::{
    commands::{
        args::{AuthorArgs, parse_time},
        complain,
        runs::sentence,
    },
    exit::{Exit, Failure},
    format::instant,
    output::{json as say_json, line as say},
    status::{RunView, daemons_alive},
};

/// The arguments of every request to a job.
#[derive(Debug, Args)]
pub(crate) struct RequestArgs {
    /// The job's name
    #[arg(value_name = "NAME")]
    job: String,
    #[command(flatten)]
    author: AuthorArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl RequestArgs {
    fn by(&self) -> String {
        self.author.name()
    }
}

/// The arguments of a request that needs a reason.
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    request: RequestArgs,
    /// Reason for the request, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// The arguments of a request that may have a reason.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    #[command(flatten)]
    request: RequestArgs,
    /// Reason for the request, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TriggerArgs {
    #[command(flatten)]
    request: RequestArgs,
    /// Reason for the request, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Run the job even if it is paused
    #[arg(long)]
    force: bool,
    /// Wait for the run and print its result; exit 1 unless its status is `done`
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    request: RequestArgs,
    /// The scheduled time
    #[arg(value_name = "TIME", value_parser = parse_time)]
    scheduled_at: DateTime<Utc>,
    /// Run it even if it is already done
    #[arg(long)]
    again: bool,
    /// Reason for the request, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Wait for the run and print its result; exit 1 unless its status is `done`
    #[arg(long)]
    wait: bool,
}

/// What happens to a request that no daemon applies.
const NO_DAEMON: &str =
    "no daemon is alive: start one with `billing-daemon run` within an hour, or the request expires";
/// How often a request that is waited for is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long to wait for a run if the configuration has no timeout of the job.
const WAIT_TIMEOUT: Duration = Duration::from_hours(1);
/// The time in addition to the job's timeout: a run starts within seconds, and is abandoned if it does not stop.
const WAIT_MARGIN: Duration = Duration::from_mins(2);

pub(super) async fn pause(session: &JobSession, options: &PauseArgs) -> Result<(), Failure> {
    let (request, reason) = (&options.request, Some(&*options.reason));
    let (receipt, _) = session.submit(&request.job, ControlAction::Pause, request.by(), reason).await?;
    print_receipt(
        request,
        receipt,
        "paused: a run in progress continues, and no other starts until `jobs resume`",
    );
    Ok(())
}

pub(super) async fn resume(session: &JobSession, options: &CancelArgs) -> Result<(), Failure> {
    let (request, reason) = (&options.request, options.reason.as_deref());
    let (receipt, _) = session.submit(&request.job, ControlAction::Resume, request.by(), reason).await?;
    print_receipt(
        request,
        receipt,
        "resumed: the scheduled times of the pause are recorded as paused and not run",
    );
    Ok(())
}

pub(super) async fn cancel(session: &JobSession, options: &CancelArgs) -> Result<(), Failure> {
    let (request, reason) = (&options.request, options.reason.as_deref());
    let receipt = session.cancel(&request.job, request.by(), reason).await?;
    print_receipt(
        request,
        receipt,
        "cancelled: the run in progress is requested to stop, and is not run again",
    );
    Ok(())
}

pub(super) async fn reset(session: &JobSession, options: &PauseArgs) -> Result<(), Failure> {
    let (request, reason) = (&options.request, Some(&*options.reason));
    let (receipt, _) = session.submit(&request.job, ControlAction::Reset, request.by(), reason).await?;
    print_receipt(request, receipt, "reset: a daemon continues its schedule from now within 2s");
    Ok(())
}

/// Prints what became of a request.
fn print_receipt(request: &RequestArgs, receipt: ControlReceipt, accepted: &str) {
    let (changed, about) = match receipt {
        ControlReceipt::Accepted => (true, accepted.to_owned()),
        ControlReceipt::Unchanged(why) => (false, format!("nothing to do: {why}")),
    };
    if request.json {
        say_json(&json!({ "job": request.job, "changed": changed, "about": about }));
    } else {
        say(format!("{}: {about}", request.job));
    }
}

pub(super) async fn trigger(session: &JobSession, options: &TriggerArgs) -> Result<(), Failure> {
    let request = &options.request;
    let job = session.job(&request.job).await?;
    if let Some(pause) = job.paused.as_ref().filter(|_| !options.force) {
        return Err(Failure::new(Exit::Usage, needs_force(&job.job, pause)));
    }
    let reason = options.reason.as_deref();
    let (_, id) = session.submit(&request.job, ControlAction::RunNow, request.by(), reason).await?;
    report_run(session, request, options.wait, id).await
}

pub(super) async fn replay(session: &JobSession, options: &ReplayArgs) -> Result<(), Failure> {
    let (request, scheduled_at) = (&options.request, options.scheduled_at);
    let job = session.job(&request.job).await?.job;
    let at = instant(scheduled_at);
    if scheduled_at > session.now().await? {
        return Err(Failure::new(Exit::Usage, format!("{at} is in the future")));
    }
    let filter =
        RunFilter { job: Some(job.clone()), scheduled_at: Some(scheduled_at), ..RunFilter::default() };
    let runs = session.runs(&filter).await?;
    let is_done = |run: &&RunView| run.status == RunStatus::Done && run.scheduled_at == scheduled_at;
    if let Some(done) = runs.iter().find(is_done).filter(|_| !options.again) {
        let message = format!("{at} is done, by run {}: run it once more with --again", done.id);
        return Err(Failure::new(Exit::Usage, message));
    }
    let is_of = |schedule: &Schedule| is_scheduled(schedule, scheduled_at);
    if runs.is_empty() && !session.configured().find(&job).is_none_or(|spec| is_of(&spec.schedule)) {
        let message = format!(
            "{at} is not a scheduled time of `{job}`: see `jobs next {job}` and `runs list --job {job}`"
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    let action = ControlAction::Replay { scheduled_at };
    let (_, id) = session.submit(&job, action, request.by(), options.reason.as_deref()).await?;
    report_run(session, request, options.wait, id).await
}

/// Prints that a run was requested, or waits until it has ended.
async fn report_run(
    session: &JobSession,
    request: &RequestArgs,
    wait: bool,
    id: Uuid,
) -> Result<(), Failure> {
    let job = &request.job;
    let daemons = daemons_alive(&session.opened).await?;
    if !wait {
        if request.json {
            say_json(&json!({ "job": job, "request_id": id, "daemons_alive": daemons }));
        } else if daemons > 0 {
            say(format!("{job}: requested as {id}; a daemon that has the job starts it within 2s"));
        } else {
            say(format!("{job}: requested as {id}; {NO_DAEMON}"));
        }
        return Ok(());
    }
    if daemons == 0 {
        complain(NO_DAEMON);
    }
    let timeout = session.configured().find(job).map_or(WAIT_TIMEOUT, |spec| spec.timeout) + WAIT_MARGIN;
    let Some(run) = wait_for_run(session, id, timeout).await? else {
        let waited = duration::format_rounded(timeout);
        let message = format!(
            "no daemon has run request {id} within {waited}; it expires an hour after it was made, and `jobs cancel {job}` \
             withdraws it"
        );
        return Err(Failure::new(Exit::TryAgain, message));
    };
    if request.json {
        say_json(&json!({ "job": job, "request_id": id, "run": run }));
    } else {
        say(sentence(&run));
    }
    if run.status == RunStatus::Done { Ok(()) } else { Err(Failure::silent(Exit::Negative)) }
}

/// The message that a paused job is not run.
pub(in crate::commands) fn needs_force(job: &str, pause: &impl Display) -> String {
    format!("job `{job}` is {pause}: run it with `--force`, or resume it with `jobs resume {job}`")
}

async fn wait_for_run(session: &JobSession, id: Uuid, timeout: Duration) -> Result<Option<RunView>, Failure> {
    let (filter, began) = (RunFilter { request_id: Some(id), ..RunFilter::default() }, Instant::now());
    let mut reported = false;
    while began.elapsed() < timeout {
        if let Some(run) = session.runs(&filter).await?.pop() {
            return Ok(Some(run));
        }
        if !reported && began.elapsed() > Duration::from_secs(5) {
            complain(
                "still waiting: another run of the job is in progress, or no daemon that has the job is alive",
            );
            reported = true;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(None)
}
