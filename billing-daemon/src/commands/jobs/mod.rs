//! `jobs`: their states, their scheduled times, and requests to them. Everything goes through the database, so no daemon has to be
//! reachable or running.

pub(super) mod control;
mod explain;
mod list;
mod next;
mod session;

use clap::Subcommand;

use self::{
    control::{CancelArgs, PauseArgs, ReplayArgs, TriggerArgs},
    explain::ExplainArgs,
    next::NextArgs,
    session::JobSession,
};
use super::{args::JsonArgs, session::Session};
use crate::{commands::cli::Common, exit::Failure, plugins::Plugins};

#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// List every job, its next run and the result of its last run
    #[command(
        after_help = "Example:\n  billing-daemon jobs list --json | jq -r '.[] | select(.late_seconds) | .job'"
    )]
    List {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one job and its last runs
    #[command(after_help = "Example:\n  billing-daemon jobs show billing")]
    Show {
        /// The job's name
        #[arg(value_name = "NAME")]
        job: String,
        #[command(flatten)]
        format: JsonArgs,
    },
    /// Print the next scheduled times of a job or of a cron expression
    #[command(after_help = "Example:\n  billing-daemon jobs next --cron '30 2 * * *' --from 2027-03-27")]
    Next(NextArgs),
    /// Pause a job until it is resumed; a run in progress continues
    #[command(after_help = "Example:\n  billing-daemon jobs pause billing --reason 'prices are wrong'")]
    Pause(PauseArgs),
    /// Resume a paused job at its next scheduled time
    #[command(after_help = "Example:\n  billing-daemon jobs resume billing")]
    Resume(CancelArgs),
    /// Run a job once now, in addition to its schedule
    #[command(after_help = "Example:\n  billing-daemon jobs trigger billing --wait")]
    Trigger(TriggerArgs),
    /// Stop a job's run in progress, drop its retry, or withdraw open requests
    #[command(after_help = "Example:\n  billing-daemon jobs cancel billing --reason 'wrong prices'")]
    Cancel(CancelArgs),
    /// Run one past scheduled time of a job again
    #[command(after_help = "Example:\n  billing-daemon jobs replay billing 2026-11-22T15:00:00Z --wait")]
    Replay(ReplayArgs),
    /// Continue a job's schedule from now; use it after a clock that was ahead was corrected
    #[command(after_help = "Example:\n  billing-daemon jobs reset billing --reason 'clock was a year ahead'")]
    Reset(PauseArgs),
    /// Explain why a job did not run, or how its run ended
    #[command(after_help = "Example:\n  billing-daemon jobs explain billing --at 2026-11-22T15:00:00Z")]
    Explain(ExplainArgs),
}

pub(super) async fn execute(common: &Common, plugins: &Plugins, action: &JobsCommand) -> Result<(), Failure> {
    if let JobsCommand::Next(options) = action {
        // A cron expression needs neither a database nor a configuration.
        return next::execute(common, plugins, options);
    }
    let reads =
        matches!(action, JobsCommand::List { .. } | JobsCommand::Show { .. } | JobsCommand::Explain(_));
    let session = &JobSession::open(&Session::new(common, plugins)?, reads).await?;
    match action {
        JobsCommand::Next(_) => Ok(()),
        JobsCommand::List { json } => list::list(session, *json).await,
        JobsCommand::Show { job, format } => list::show(session, job, format.json).await,
        JobsCommand::Pause(options) => control::pause(session, options).await,
        JobsCommand::Resume(options) => control::resume(session, options).await,
        JobsCommand::Cancel(options) => control::cancel(session, options).await,
        JobsCommand::Trigger(options) => control::trigger(session, options).await,
        JobsCommand::Replay(options) => control::replay(session, options).await,
        JobsCommand::Reset(options) => control::reset(session, options).await,
        JobsCommand::Explain(options) => explain::execute(session, options).await,
    }
}
