//! The configuration in force, and how another one replaces it.

use std::sync::{Arc, PoisonError, RwLock};

use billing_jobs::{BILLING_JOB, Services};
use billing_kinds::Pings;
use billing_scheduler::{ConfigChanges, JobSpec, Registry, Scheduler};
use tokio::task::{JoinError, JoinHandle, block_in_place};
use tracing::{Instrument as _, debug_span, error, field::Empty, info, warn};

use super::{
    HEARTBEAT, ping_setup_failed,
    reload::{ConfigFile, needs_restart},
    reload_audit::ReloadAudit,
    signals::{ReloadSignal, ShutdownSignal, Signals},
    ticker::Ticker,
};
use crate::{
    config::{Config, DaemonSettings, http::HttpSettings},
    exit::Failure,
    host::identity::Identity,
    panel_database::PanelDatabase,
    plugins::{Plugins, registry},
    service_manager::{LastBilling, Notification, ServiceManager, Watchdog},
    status::{Expected, panel_presence::PanelPresence},
    telemetry::{mask::Concealed, metrics},
};

/// What the jobs of a running daemon are built with.
pub(super) struct RunningDaemon {
    pub(super) services: Services,
    pub(super) identity: Identity,
    pub(super) plugins: Plugins,
    pub(super) panel_database: PanelDatabase,
    pub(super) bills: bool,
    pub(super) daemon: DaemonSettings,
    /// How many jobs are enabled.
    pub(super) jobs: usize,
    pub(super) manager: Arc<ServiceManager>,
    pub(super) last_billing: LastBilling,
    /// `None` if the configuration comes from no file.
    pub(super) source: Option<ConfigFile>,
    pub(super) reloads: ReloadAudit,
    pub(super) http: Option<HttpSettings>,
    /// What HTTP requests judge the status by.
    pub(super) expected: Arc<RwLock<Arc<Expected>>>,
    pub(super) pings: Pings,
    pub(super) secrets: Secrets,
}

/// What no log line and no run in the history contains.
pub(super) struct Secrets {
    /// The password of the database.
    pub(super) database: Vec<String>,
    pub(super) log: Concealed,
}

impl Secrets {
    /// Masks the password of the database, and the secrets of the jobs of `config`, in the history and in the log.
    pub(super) fn conceal(&self, registry: &mut Registry, config: &Config) {
        let secrets = config.secrets(registry);
        registry.conceal(secrets.iter().chain(&self.database));
        self.log.add(secrets);
    }
}

impl RunningDaemon {
    /// Sends the status line of the daemon to the service manager.
    fn notify_status(&self) {
        self.manager.notify_status(&self.last_billing.status_line(self.jobs));
    }

    /// Whether the file has a different text than the one in force.
    fn has_changed(&mut self) -> bool {
        self.source.as_mut().is_some_and(ConfigFile::has_changed)
    }

    /// Rereads the configuration and applies it, or logs why it cannot.
    async fn reload(&mut self, scheduler: &Scheduler) {
        let Some(mut source) = self.source.take() else {
            info!("this daemon has no file to read again");
            return;
        };
        self.manager.notify(Notification::Reloading);
        let name = source.name();
        let span = debug_span!("reload", config.file = name, outcome = Empty, error = Empty);
        let applied = self.apply_reload(scheduler, &mut source).instrument(span.clone()).await;
        metrics::reloaded(applied.is_ok());
        match applied {
            Ok(()) => {
                span.record("outcome", "accepted");
            }
            Err(reason) => {
                span.record("outcome", "refused").record("error", "everything stays as it was");
                span.in_scope(|| error!(reloaded = false, "{reason}; everything stays as it was"));
            }
        }
        self.manager.notify(Notification::Ready);
        self.source = Some(source);
    }

    /// Puts the configuration of `source` into force, or returns why it cannot.
    async fn apply_reload(&mut self, scheduler: &Scheduler, source: &mut ConfigFile) -> Result<(), String> {
        let name = source.name();
        let config = block_in_place(|| source.reread()).map_err(|problems| {
            for problem in &problems {
                error!("{problem:#}");
            }
            let plural = if problems.len() == 1 { "problem" } else { "problems" };
            format!("{name} has {} {plural}", problems.len())
        })?;
        for warning in &config.warnings {
            warn!("{warning:#}");
        }
        let needs_guard = self.needs_guard(config.bills()).await.map_err(|failure| failure.message)?;
        let billing_interval = config.billing_interval_or_default();
        let has_other_interval = billing_interval != self.services.billing_interval;
        let services = Services { billing_interval, needs_guard, ..self.services.clone() };
        let mut registry = registry(&services, &self.plugins);
        self.secrets.conceal(&mut registry, &config);
        // Both jobs depend on the interval: how long a new daemon may beat, and when the panel may bill.
        let renew =
            |spec: &JobSpec| has_other_interval && [HEARTBEAT, BILLING_JOB].contains(&spec.kind.as_str());
        let expected = Arc::new(Expected {
            // Settings that need a restart are not in force.
            panel_billing: self.daemon.panel_billing,
            ..Expected::from(&config)
        });
        let (bills, jobs) = (config.bills(), config.jobs.len());
        let changes = block_in_place(|| scheduler.reload(&registry, config.jobs, renew))
            .map_err(|error| format!("{name}: {error}"))?;

        metrics::in_force(&changes.added);
        (self.services, self.bills, self.jobs) = (services, bills, jobs);
        self.identity.set_billing_interval(config.billing_interval);
        self.services.status.set_metadata(&self.identity.metadata);
        *self.expected.write().unwrap_or_else(PoisonError::into_inner) = expected;
        let pings = self.pings.replace(config.pings).unwrap_or_else(|error| {
            error!("{name}: {}; pings stay as they were", ping_setup_failed(&error).message);
            Vec::new()
        });
        log_changes(&name, &changes, &pings);
        warn_without_billing(self.bills);
        let pending =
            needs_restart((&self.daemon, self.http.as_ref()), (&config.daemon, config.http.as_ref()));
        if !pending.is_empty() {
            let verb = if pending.len() == 1 { "comes" } else { "come" };
            warn!("{name}: {} {verb} into force at the next start", pending.join(", "));
        }
        self.daemon.drain_timeout = config.daemon.drain_timeout;
        self.reloads.record(source, &changes);
        Ok(())
    }

    /// Whether billing relies on the panel guard; an error if a daemon that starts to bill must not.
    async fn needs_guard(&self, will_bill: bool) -> Result<bool, Failure> {
        if self.bills || !will_bill {
            return Ok(self.services.needs_guard);
        }
        let presence = PanelPresence::detect_with_timeout(self.panel_database.clone()).await?;
        presence.ensure_may_charge(self.daemon.panel_billing)?;
        Ok(presence.needs_guard(self.daemon.panel_billing))
    }
}

/// Logs each change of the jobs and of the pings of jobs that remain.
fn log_changes(name: &str, changes: &ConfigChanges, pings: &[String]) {
    let remains = |job: &&String| !changes.added.contains(*job) && !changes.removed.contains(*job);
    let pings: Vec<_> = pings.iter().filter(remains).collect();
    if changes.is_empty() && pings.is_empty() {
        info!(reloaded = true, "{name} was read again: no job is different");
        return;
    }
    for change in changes.to_string().lines() {
        info!("{name}: {change}");
    }
    for job in pings {
        info!("{name}: {job}: ping");
    }
    info!(reloaded = true, "{name} is in force");
}

pub(super) fn warn_without_billing(bills: bool) {
    if !bills {
        warn!("no job of kind `{BILLING_JOB}` is enabled: this daemon charges nothing");
    }
}

/// Owns the configuration in force. During a reload a separate task owns it: the task that ticks the scheduler does not wait for
/// the validation of a file.
pub(super) struct ReloadLoop {
    /// `None` during a reload.
    in_force: Option<Box<RunningDaemon>>,
    reload: Option<JoinHandle<Box<RunningDaemon>>>,
    /// A reload was requested during another one.
    again: bool,
}

impl ReloadLoop {
    pub(super) fn new(in_force: RunningDaemon) -> Self {
        Self { in_force: Some(Box::new(in_force)), reload: None, again: false }
    }

    /// Ticks the scheduler and applies changed configurations until a signal arrives.
    pub(super) async fn run(
        &mut self,
        scheduler: &Scheduler,
        manager: &ServiceManager,
        ticker: &mut Ticker,
        reload_signal: &mut ReloadSignal,
        signals: &mut Signals,
    ) -> ShutdownSignal {
        let mut watchdog = Watchdog::new(manager.watchdog());
        // The first tick may be a second away, and a panel waits for the first heartbeat.
        scheduler.tick();
        manager.notify(Notification::Ready);
        loop {
            if let Some(in_force) = &self.in_force {
                in_force.notify_status();
            }
            tokio::select! {
                () = ticker.tick() => {
                    scheduler.tick();
                    watchdog.ticked(manager);
                    if self.in_force.as_mut().is_some_and(|in_force| in_force.has_changed()) {
                        self.begin_reload(scheduler);
                    }
                }
                () = reload_signal.next() => self.begin_reload(scheduler),
                () = self.reloaded() => {
                    if std::mem::take(&mut self.again) {
                        self.begin_reload(scheduler);
                    }
                }
                signal = signals.next() => return signal,
            }
        }
    }

    /// Starts a reload, or requests one after the reload in progress.
    fn begin_reload(&mut self, scheduler: &Scheduler) {
        let Some(mut in_force) = self.in_force.take() else {
            self.again = true;
            return;
        };
        let scheduler = scheduler.clone();
        self.reload = Some(tokio::spawn(async move {
            in_force.reload(&scheduler).await;
            in_force
        }));
    }

    /// Returns when a reload has ended, and never without one. Nothing is lost if the future is dropped.
    async fn reloaded(&mut self) {
        let Some(reload) = &mut self.reload else { return std::future::pending().await };
        self.in_force = Some(joined(reload.await));
        self.reload = None;
    }

    /// Returns the configuration in force, after the reload in progress.
    pub(super) async fn finish(mut self) -> Box<RunningDaemon> {
        loop {
            match self.in_force.take() {
                Some(in_force) => return in_force,
                None => self.reloaded().await,
            }
        }
    }
}

fn joined(reload: Result<Box<RunningDaemon>, JoinError>) -> Box<RunningDaemon> {
    // A reload is never cancelled.
    reload.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
