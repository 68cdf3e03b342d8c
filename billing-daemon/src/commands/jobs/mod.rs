//! `jobs`: how they stand, when they run, and what is asked of them. Everything goes through the database: a daemon that
//! runs need not be reached, and none need run.

pub(super) mod control;
mod explain;
mod list;
mod next;

use std::sync::Arc;

use billing_scheduler::{Clock, Control, JobSpec, RunFilter, RunRow, Store, StoreError, SystemClock};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Subcommand;
use serde_json::{Value, json};

use self::{
    control::{CancelArgs, PauseArgs, ReplayArgs, TriggerArgs},
    explain::ExplainArgs,
    next::NextArgs,
};
use super::{args::JsonArgs, cli::Common, runs::run_in_json, session::Session};
use crate::{
    config::{DaemonSettings, did_you_mean},
    exit::{Exit, Failure},
    host::identity::{Identity, operator_name},
    panel_database::{self, PanelDatabase},
    plugins::Plugins,
    status::jobs::{JobOverview, job_overviews},
};
use billing_store::{QueryFailed, SeaOrmStore};

#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// List every job, its next run and the result of its last run
    #[command(
        after_help = "Example:\n  billing-daemon jobs list --json | jq -r '.[] | select(.late) | .job'"
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
    /// Continue a job's schedule from now, after a clock that was ahead was corrected
    #[command(after_help = "Example:\n  billing-daemon jobs reset billing --reason 'clock was a year ahead'")]
    Reset(PauseArgs),
    /// Explain why a job did not run, or how its run ended
    #[command(after_help = "Example:\n  billing-daemon jobs explain billing --at 2026-11-22T15:00:00Z")]
    Explain(ExplainArgs),
}

pub(super) async fn execute(common: &Common, plugins: &Plugins, action: &JobsCommand) -> Result<(), Failure> {
    let session = || Session::new(common, plugins);
    let open = async |by: Option<&str>| JobSession::open(&session()?, by).await;
    match action {
        JobsCommand::Next(options) => next::execute(common, plugins, options),
        JobsCommand::List { json } => list::list(&open(None).await?, *json).await,
        JobsCommand::Show { job, format } => list::show(&open(None).await?, job, format.json).await,
        JobsCommand::Pause(options) => control::pause(&open(options.request.by()).await?, options).await,
        JobsCommand::Resume(options) => control::resume(&open(options.request.by()).await?, options).await,
        JobsCommand::Cancel(options) => control::cancel(&open(options.request.by()).await?, options).await,
        JobsCommand::Trigger(options) => control::trigger(&open(options.request.by()).await?, options).await,
        JobsCommand::Replay(options) => control::replay(&open(options.request.by()).await?, options).await,
        JobsCommand::Reset(options) => control::reset(&open(options.request.by()).await?, options).await,
        JobsCommand::Explain(options) => explain::execute(&open(None).await?, options).await,
    }
}

/// Where one asks: the database, and the jobs of the configuration if there is one.
pub(super) struct JobSession {
    pub(super) control: Control,
    pub(super) opened: PanelDatabase,
    pub(super) clock: Arc<dyn Clock>,
    /// Those of the configuration, or of the built-in defaults; none if it cannot be read.
    pub(super) specs: Vec<JobSpec>,
    /// Whether a job that `specs` lack is not configured: without a file, the daemon may run with one that is elsewhere.
    pub(super) is_complete: bool,
}

impl JobSession {
    /// Opens the database; what is asked is signed with `by`, or else with the name of whoever is logged in.
    pub(super) async fn open(session: &Session<'_>, by: Option<&str>) -> Result<Self, Failure> {
        let database = session.database()?;
        let loaded = session.load_if_valid();
        let ttl =
            loaded.map_or_else(DaemonSettings::default, |loaded| loaded.config.daemon.clone()).lease_ttl;
        let opened = panel_database::open_without_retry(&database).await?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let holder = Identity::from_process(None).daemon_id;
        let store: Arc<dyn Store> =
            Arc::new(SeaOrmStore::new(opened.db.clone(), database, holder, ttl, Arc::clone(&clock)));
        let by = by.map_or_else(operator_name, str::to_owned);
        // Each command looks for its job itself, also in jobs.toml, and knows a name that is meant.
        let control = Control::new(store, Arc::clone(&clock), by).with_known_jobs(|_| true);
        let is_complete = loaded.is_some_and(|loaded| loaded.file.path().is_some());
        let specs =
            loaded.iter().flat_map(|loaded| &loaded.config.jobs).map(|(spec, _)| spec.clone()).collect();
        Ok(Self { control, opened, clock, specs, is_complete })
    }

    /// Every job that the database or the configuration knows, by name.
    pub(super) async fn jobs(&self) -> Result<Vec<JobOverview>, Failure> {
        let jobs = job_overviews(&self.opened.db, &self.specs).await;
        jobs.map_err(|error| Failure::database("read the jobs", &error))
    }

    /// The job called `name`, which must be known.
    pub(super) async fn job(&self, name: &str) -> Result<JobOverview, Failure> {
        let mut jobs = self.jobs().await?;
        if let Some(index) = jobs.iter().position(|job| job.name == name) {
            return Ok(jobs.swap_remove(index));
        }
        let hint = did_you_mean(name, jobs.iter().map(|job| job.name.as_str()));
        let hint = hint.map(|hint| format!(", {hint}")).unwrap_or_default();
        Err(Failure::new(
            Exit::Usage,
            format!("neither the database nor jobs.toml knows a job `{name}`{hint}"),
        ))
    }

    pub(super) async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, Failure> {
        self.control.runs(filter).await.map_err(store_failure)
    }
}

impl JobOverview {
    /// How it stands, in one word or two.
    pub(super) fn word(&self, known: bool, now: DateTime<Utc>) -> &'static str {
        let row = self.row.as_ref();
        if self.spec.is_none() && known {
            "not configured"
        } else if self.late(now).is_some() {
            "late"
        } else if row.is_some_and(|row| row.lease.is_some()) {
            "running"
        } else if self.paused.is_some() {
            "paused"
        } else if row.is_some_and(|row| row.state.retrying.is_some()) {
            "retrying"
        } else {
            "waiting"
        }
    }

    fn schedule(&self) -> String {
        let planned =
            || self.row.as_ref().and_then(|row| row.claim_hint.as_ref()).map(|plan| plan.schedule.clone());
        self.spec.as_ref().map(|spec| spec.schedule.to_string()).or_else(planned).unwrap_or_default()
    }

    fn in_json(&self, known: bool, now: DateTime<Utc>) -> Value {
        let row = self.row.as_ref();
        let held = row.and_then(|row| row.lease.as_ref());
        json!({
            "job": self.name,
            "kind": self.spec.as_ref().map(|spec| &spec.kind),
            "state": self.word(known, now),
            "schedule": self.schedule(),
            "next_at": self.next_at(now).map(instant),
            "late": self.late(now).is_some(),
            "cursor": row.map(|row| instant(row.state.cursor)),
            "lease": held.map(|held| json!({
                "holder": held.name, "fencing_token": held.fencing_token.0, "expires_at": instant(held.expires_at),
            })),
            "paused": self.paused.as_ref().map(|pause| json!({
                "by": pause.by, "since": instant(pause.since), "reason": pause.reason,
            })),
            "retrying": row.and_then(|row| row.state.retrying).map(|retrying| json!({
                "scheduled_at": instant(retrying.scheduled_at),
                "failed_attempts": retrying.failed_attempts,
                "not_before": instant(retrying.not_before),
            })),
            "last_run": self.last.as_ref().map(run_in_json),
        })
    }
}

/// An instant as programs read it.
pub(super) fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

pub(super) fn store_failure(error: StoreError) -> Failure {
    match error {
        StoreError::Unavailable(source) => match source.downcast::<QueryFailed>() {
            Ok(error) => Failure::database("ask the database", &error.0),
            Err(other) => Failure::new(Exit::Internal, other),
        },
        other => Failure::new(Exit::TryAgain, other),
    }
}
