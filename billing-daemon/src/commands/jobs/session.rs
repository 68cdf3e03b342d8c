//! What the commands about jobs work with: the database, and the jobs of the configuration.

use std::sync::Arc;

use billing_scheduler::{
    Control, ControlAction, ControlReceipt, ControlRequest, JobSpec, RunFilter, StoreClock, SystemClock,
};
use billing_store::{Database, SeaOrmStore, is_known_job, read_job_names, read_runs, submit_request};
use chrono::{DateTime, Utc};
use sea_orm::DbErr;
use uuid::Uuid;

use crate::{
    commands::session::Session,
    config::{DaemonSettings, did_you_mean},
    exit::{Exit, Failure},
    host::identity::Identity,
    panel_database::{self, PanelDatabase},
    status::{
        JobView, RunView,
        jobs::{ConfiguredJobs, read_job_view, read_job_views},
    },
};

pub(super) struct JobSession {
    pub(super) opened: PanelDatabase,
    database: Database,
    daemon: DaemonSettings,
    /// The jobs of the configuration, or of the built-in defaults; none if it has mistakes.
    specs: Vec<JobSpec>,
    /// Whether a job that `specs` lack is not configured: without a file, the daemon may run with one in another place.
    pub(super) is_complete: bool,
}

impl JobSession {
    /// Opens the database; its server may be a standby if the command only `reads`. A configuration with mistakes does not prevent a
    /// pause.
    pub(super) async fn open(session: &Session<'_>, reads: bool) -> Result<Self, Failure> {
        let database = session.database()?;
        let database = if reads { database.reading() } else { database };
        let loaded = session.load_if_valid();
        let opened = panel_database::open_without_retry(&database).await?;
        Ok(Self {
            opened,
            database,
            daemon: loaded.map(|loaded| loaded.config.daemon.clone()).unwrap_or_default(),
            is_complete: loaded.is_some_and(|loaded| loaded.file.path().is_some()),
            specs: loaded
                .iter()
                .flat_map(|loaded| &loaded.config.jobs)
                .map(|(spec, _)| spec.clone())
                .collect(),
        })
    }

    /// Returns the time by the database's clock, which the daemon that answers a request follows.
    pub(super) async fn now(&self) -> Result<DateTime<Utc>, Failure> {
        self.opened.now().await.map_err(|error| Failure::database("read the database's clock", &error))
    }

    pub(super) fn configured(&self) -> ConfiguredJobs<'_> {
        ConfiguredJobs { specs: &self.specs, is_complete: self.is_complete }
    }

    /// Reads every job that the database or the configuration knows, sorted by name.
    pub(super) async fn jobs(&self) -> Result<Vec<JobView>, Failure> {
        let now = self.now().await?;
        read_job_views(&self.opened.db, self.configured(), now)
            .await
            .map_err(|error| cannot_read_jobs(&error))
    }

    /// Reads the job called `name`, which must be known.
    pub(super) async fn job(&self, name: &str) -> Result<JobView, Failure> {
        let now = self.now().await?;
        let job = read_job_view(&self.opened.db, name, self.configured(), now).await;
        match job.map_err(|error| cannot_read_jobs(&error))? {
            Some(job) => Ok(job),
            None => Err(self.unknown(name).await),
        }
    }

    /// Fails if neither the database nor the configuration knows a job called `name`.
    async fn check_known(&self, name: &str) -> Result<(), Failure> {
        if self.configured().find(name).is_some()
            || is_known_job(&self.opened.db, name).await.map_err(|error| cannot_read_jobs(&error))?
        {
            return Ok(());
        }
        Err(self.unknown(name).await)
    }

    async fn unknown(&self, name: &str) -> Failure {
        // Without the names in the database, the suggestion is from the configuration alone.
        let stored = read_job_names(&self.opened.db).await.unwrap_or_default();
        let names = stored.iter().chain(self.specs.iter().map(|spec| &spec.name));
        let hint = did_you_mean(name, names.map(String::as_str));
        let hint = hint.map(|hint| format!(", {hint}")).unwrap_or_default();
        Failure::new(Exit::Usage, format!("neither the database nor jobs.toml has a job `{name}`{hint}"))
    }

    pub(super) async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunView>, Failure> {
        let runs = read_runs(&self.opened.db, filter).await;
        let runs = runs.map_err(|error| Failure::database("read the history", &error))?;
        Ok(runs.into_iter().map(RunView::from).collect())
    }

    /// Stores a request of `by` to a known job. Returns what became of it, and its id.
    pub(super) async fn submit(
        &self,
        job: &str,
        action: ControlAction,
        by: String,
        reason: Option<&str>,
    ) -> Result<(ControlReceipt, Uuid), Failure> {
        self.check_known(job).await?;
        let request = ControlRequest {
            id: Uuid::now_v7(),
            job: job.to_owned(),
            action,
            by,
            reason: reason.map(str::to_owned),
            at: self.now().await?,
        };
        let receipt = submit_request(&self.opened.db, &request).await;
        let receipt = receipt.map_err(|error| Failure::database("store the request", &error))?;
        Ok((receipt, request.id))
    }

    /// Cancels a known job. A retry that no daemon works on is given up here, under a lease of this process.
    pub(super) async fn cancel(
        &self,
        job: &str,
        by: String,
        reason: Option<&str>,
    ) -> Result<ControlReceipt, Failure> {
        self.check_known(job).await?;
        let holder = Identity::from_process(None).daemon_id;
        let (db, ttl) = (self.opened.db.clone(), self.daemon.lease_ttl);
        let store = SeaOrmStore::new(db, self.database.clone(), holder, ttl, Arc::new(SystemClock));
        let clock = StoreClock::new(Arc::new(SystemClock));
        let cancelled = async {
            clock.synchronize(&store).await?;
            Control::new(Arc::new(store), Arc::new(clock), by).cancel(job, reason).await
        };
        cancelled.await.map_err(|error| Failure::store("cancel the run", error))
    }
}

fn cannot_read_jobs(error: &DbErr) -> Failure {
    Failure::database("read the jobs", error)
}
