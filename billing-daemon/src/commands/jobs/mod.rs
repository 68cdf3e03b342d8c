//! `jobs`: how they stand, when they run, and what is asked of them. Everything goes through the database: a daemon that
//! runs need not be reached, and none need run.

pub(super) mod control;
mod explain;
mod list;
mod next;

use std::sync::Arc;

use billing_scheduler::{Clock, Control, JobSpec, RunFilter, RunRow, Store, StoreError, SystemClock};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::{database, environment, log, quiet_filter, runs::run_in_json, source};
use crate::{
    commands::cli::{Common, Jobs},
    config::did_you_mean,
    exit::{Exit, Failure},
    host::identity::{Identity, operator_name},
    panel_database::{self, PanelDatabase},
    plugins::Plugins,
    status::jobs::{JobOverview, job_overviews},
    telemetry::LogOutput,
};
use billing_store::{QueryFailed, SeaOrmStore};

pub(super) async fn execute(common: &Common, plugins: &Plugins, action: &Jobs) -> Result<(), Failure> {
    match action {
        Jobs::Next(options) => next::execute(common, plugins, options),
        Jobs::List { json } => list::list(&Session::open(common, plugins, None).await?, *json).await,
        Jobs::Show { job, json } => {
            list::show(&Session::open(common, plugins, None).await?, job, *json).await
        }
        Jobs::Pause(asked) => control::pause(&Session::open(common, plugins, asked.by()).await?, asked).await,
        Jobs::Resume(asked) => {
            control::resume(&Session::open(common, plugins, asked.by()).await?, asked).await
        }
        Jobs::Cancel(asked) => {
            control::cancel(&Session::open(common, plugins, asked.by()).await?, asked).await
        }
        Jobs::Trigger(asked) => {
            control::trigger(&Session::open(common, plugins, asked.by()).await?, asked).await
        }
        Jobs::Replay(asked) => {
            control::replay(&Session::open(common, plugins, asked.by()).await?, asked).await
        }
        Jobs::Reset(asked) => control::reset(&Session::open(common, plugins, asked.by()).await?, asked).await,
        Jobs::Explain(options) => {
            explain::execute(&Session::open(common, plugins, None).await?, options).await
        }
    }
}

/// Where one asks: the database, and the jobs of the configuration if there is one.
pub(super) struct Session {
    pub(super) control: Control,
    pub(super) opened: PanelDatabase,
    pub(super) clock: Arc<dyn Clock>,
    /// Those of the configuration, or of the built-in defaults; none if it cannot be read.
    pub(super) specs: Vec<JobSpec>,
    /// Whether a job that `specs` lack is not configured: without a file, the daemon may run with one that is elsewhere.
    pub(super) is_complete: bool,
}

impl Session {
    /// Opens the database; what is asked is signed with `by`, or else with the name of whoever is logged in.
    pub(super) async fn open(common: &Common, plugins: &Plugins, by: Option<&str>) -> Result<Self, Failure> {
        let environment = environment(common)?;
        let database = database(common, plugins, &environment)?;
        log(common, LogOutput::Stderr, &quiet_filter(&environment), Some(&database))?;
        // A file with a mistake in it is no reason not to pause a job.
        let source = source(common, plugins, &environment).ok();
        let is_file = source.as_ref().is_some_and(|source| source.path().is_some());
        let config = source.and_then(|source| source.config().ok());
        let ttl = config.as_ref().map_or_else(Default::default, |config| config.daemon.clone()).lease_ttl;
        let opened = panel_database::open_without_retry(&database).await?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let holder = Identity::of_process(None).instance;
        let store: Arc<dyn Store> =
            Arc::new(SeaOrmStore::new(opened.db.clone(), database, holder, ttl, Arc::clone(&clock)));
        let by = by.map_or_else(operator_name, str::to_owned);
        // Each command looks for its job itself, also in jobs.toml, and knows a name that is meant.
        let control = Control::new(store, Arc::clone(&clock), by).with_known_jobs(|_| true);
        let is_complete = is_file && config.is_some();
        let specs = config.into_iter().flat_map(|config| config.jobs).map(|(spec, _)| spec).collect();
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

/// An instant as people read it, in UTC.
pub(super) fn shown(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
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
