//! The configuration in force, and how another one replaces it.

use std::sync::{Arc, PoisonError, RwLock};

use billing_jobs::{BILLING_JOB, DELIVER_KIND, PREPAID_KIND, Services};
use billing_kinds::Pings;
use billing_scheduler::{Clock as _, ConfigChanges, JobSpec, Registry, Scheduler};
use tokio::task::{JoinError, JoinHandle, block_in_place};
use tracing::{Instrument as _, debug_span, error, field::Empty, info, warn};

use super::{
    HEARTBEAT,
    config_watch::ConfigWatch,
    ping_setup_failed,
    reload::{Reading, needs_restart},
    reload_audit::ReloadAudit,
    signals::{ReloadSignal, ShutdownSignal, Signals},
    ticker::Ticker,
};
use crate::{
    config::{DaemonSettings, http::HttpSettings},
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
    pub(super) reloads: ReloadAudit,
    pub(super) http: Option<HttpSettings>,
    /// What HTTP requests judge the status by.
    pub(super) expected: Arc<RwLock<Arc<Expected>>>,
    pub(super) pings: Pings,
    pub(super) secrets: Secrets,
}

/// What no log line and no run in the history contains.
pub(super) struct Secrets {
    /// The password of the database, and the token of HTTP.
    pub(super) process: Vec<String>,
    pub(super) log: Concealed,
}

impl Secrets {
    /// Masks the secrets of the process and those of the jobs in the history and in the log.
    pub(super) fn conceal(&self, registry: &mut Registry, secrets: Vec<String>) {
        registry.conceal(secrets.iter().chain(&self.process));
        self.log.add(secrets);
    }
}

impl RunningDaemon {
    /// Sends the status line of the daemon to the service manager.
    fn notify_status(&self) {
        self.manager.notify_status(&self.last_billing.status_line(self.jobs));
    }

    /// Applies a configuration that was read, or logs why it cannot.
    async fn reload(&mut self, scheduler: &Scheduler, reading: Reading) {
        self.manager.notify(Notification::Reloading);
        let span = debug_span!("reload", config.file = reading.name, outcome = Empty, error = Empty);
        let applied = self.apply(scheduler, reading).instrument(span.clone()).await;
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
    }

    /// Puts the configuration into force, or returns why it cannot.
    async fn apply(&mut self, scheduler: &Scheduler, reading: Reading) -> Result<(), String> {
        let Reading { name, fingerprint, owner, config } = reading;
        let (config, secrets) = config.map_err(|problems| {
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
        let deliveries = config.deliveries();
        let has_other_deliveries = deliveries != self.services.deliveries;
        let services = Services { billing_interval, deliveries, needs_guard, ..self.services.clone() };
        let mut registry = registry(&services, &self.plugins);
        self.secrets.conceal(&mut registry, secrets);
        // Both jobs depend on the interval: how long a new daemon may beat, and when the panel may bill. Of the jobs of the prepaid policy,
        // each depends on the parameters of the other one.
        let renew = |spec: &JobSpec| {
            let kind = spec.kind.as_str();
            has_other_interval && [HEARTBEAT, BILLING_JOB].contains(&kind)
                || has_other_deliveries && [PREPAID_KIND, DELIVER_KIND].contains(&kind)
        };
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
        self.reloads.record(&name, fingerprint, owner, &changes);
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
/// the database.
pub(super) struct ReloadLoop {
    /// `None` during a reload.
    in_force: Option<Box<RunningDaemon>>,
    reload: Option<JoinHandle<Box<RunningDaemon>>>,
    /// `None` if the configuration comes from no file.
    watch: Option<ConfigWatch>,
}

impl ReloadLoop {
    pub(super) fn new(in_force: RunningDaemon, watch: Option<ConfigWatch>) -> Self {
        Self { in_force: Some(Box::new(in_force)), reload: None, watch }
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
                    metrics::clock_offset(scheduler.clock().offset());
                    watchdog.ticked(manager);
                }
                () = reload_signal.next() => self.request_reload(),
                () = self.progress(scheduler) => {}
                signal = signals.next() => return signal,
            }
        }
    }

    fn request_reload(&self) {
        if let Some(watch) = &self.watch {
            watch.request();
        } else {
            info!("this daemon has no file to read again");
        }
    }

    /// Waits for the end of the reload in progress, or else for a configuration, whose reload begins. Nothing is lost if the future is
    /// dropped.
    async fn progress(&mut self, scheduler: &Scheduler) {
        if self.reload.is_some() {
            return self.reloaded().await;
        }
        let Some(watch) = &mut self.watch else { return std::future::pending().await };
        let reading = watch.next().await;
        let Some(mut in_force) = self.in_force.take() else { return };
        let scheduler = scheduler.clone();
        self.reload = Some(tokio::spawn(async move {
            in_force.reload(&scheduler, reading).await;
            in_force
        }));
    }

    /// Waits for the end of the reload in progress, if there is one.
    async fn reloaded(&mut self) {
        if let Some(reload) = &mut self.reload {
            self.in_force = Some(joined(reload.await));
            self.reload = None;
        }
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
