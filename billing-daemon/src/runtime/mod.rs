//! The daemon itself: rings the scheduler until a signal comes, then drains it.

mod presence;
pub mod reload;
mod reload_audit;
pub(crate) mod signals;
mod ticker;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use billing_jobs::{BILLING_JOB, Services, daemon_status::StatusRow, panel::Panel};
use billing_kinds::Pings;
use billing_scheduler::{Clock, DrainReport, JobSpec, Registry, STOP_GRACE, Scheduler, SystemClock};
use sea_orm::DatabaseConnection;
use tokio::task::{JoinError, JoinHandle, block_in_place};
use tracing::{Instrument as _, Span, debug_span, error, field::Empty, info, warn};

use crate::{
    config::{Config, DaemonSettings, http::HttpSettings},
    exit::{Exit, Failure},
    host::{identity::Identity, platform::Platform},
    http::{AppState, Server},
    panel_database::{PanelDatabase, last_commit, open},
    plugins::Plugins,
    plugins::registry,
    runtime::{
        presence::Presence,
        reload::{ConfigFile, waiting},
        reload_audit::ReloadAudit,
        signals::{ReloadSignal, ShutdownSignal, Signals},
        ticker::Ticker,
    },
    service_manager::{LastBilling, Notification, ServiceManager, Watchdog},
    status::{Expected, panel_presence::PanelPresence},
    telemetry::{concealed::Concealed, metered_store::MeteredStore},
};
use billing_store::{Database, SeaOrmStore};

/// How long connections may take to close in the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the end takes after the runs: requests over HTTP, the last row, the connections.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// The kind of the job that tells the panel that billing works.
const HEARTBEAT: &str = "heartbeat";

/// Runs the jobs of `config` as `identity` until SIGTERM or SIGINT, and those of its `source`, if there is one, when that changes.
pub async fn run(
    config: Config,
    source: Option<ConfigFile>,
    database: Database,
    plugins: &Plugins,
    identity: Identity,
    concealed: Concealed,
) -> Result<(), Failure> {
    if Platform::current().is_none() {
        warn!("unknown operating system `{}`: it is treated as Linux", std::env::consts::OS);
    }
    let manager = Arc::new(ServiceManager::from_process());
    let (mut signals, mut hangups) = listen()?;
    let PanelDatabase { db, panel } = tokio::select! {
        opened = open(&database) => opened?,
        never = manager.report_waiting("the database") => match never {},
        signal = signals.next() => {
            info!("{signal} before the start: nothing was begun");
            return Ok(());
        }
    };
    let bills = config.bills();
    let opened = PanelDatabase { db: db.clone(), panel };
    let panel_presence = PanelPresence::detect(&opened).await?;
    if bills {
        panel_presence.ensure_may_charge(config.daemon.panel_billing)?;
    }
    let expected = Arc::new(RwLock::new(Arc::new(Expected::from(&config))));
    let server = match &config.http {
        Some(settings) => Some(serve(settings, opened, Arc::clone(&expected)).await?),
        None => None,
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let status =
        Arc::new(StatusRow::new(db.clone(), &identity.daemon_id, &identity.hostname, &identity.metadata));
    let services = Services {
        db: db.clone(),
        panel,
        status: Arc::clone(&status),
        started: clock.monotonic(),
        billing_interval: config.billing_interval_or_default(),
        needs_guard: panel_presence.needs_guard(config.daemon.panel_billing),
        last_commit: last_commit(&config.daemon, &database),
        clock: Arc::clone(&clock),
    };
    let mut registry = registry(&services, plugins);
    let last_billing = LastBilling::default();
    registry.layer(last_billing.clone());
    let password = database.url().secrets();
    conceal(&mut registry, &config, &password, &concealed);
    let pings = Pings::new(config.pings).map_err(|error| silent_jobs(&error))?;
    registry.layer(pings.clone());
    let (daemon, http) = (config.daemon, config.http);
    let ttl = daemon.lease_ttl;
    let store = SeaOrmStore::new(db.clone(), database, &identity.daemon_id, ttl, Arc::clone(&clock));
    let store = MeteredStore(store);
    let jobs = config.jobs;
    let has_heartbeat = jobs.iter().any(|(spec, _)| spec.kind == HEARTBEAT);
    let names: Vec<String> = jobs.iter().map(|(spec, _)| spec.name.clone()).collect();
    crate::telemetry::metrics::in_force(&names);
    let scheduler = Scheduler::build(&registry, jobs, Arc::new(store), clock)
        .map_err(|error| Failure::new(Exit::Configuration, error))?;
    let renewals = Renewals::start(scheduler.clone(), ttl / 3)?;
    let presence = Presence::start(Arc::clone(&status), has_heartbeat);
    let mut ringer =
        Ticker::start().await.map_err(|error| Failure::new(Exit::Internal, format!("no ringer: {error}")))?;
    announce(&identity, &names, bills, (&panel, &panel_presence));

    let opened = PanelDatabase { db: db.clone(), panel };
    let in_force = RunningDaemon {
        reloads: ReloadAudit::new(&services, source.as_ref()),
        services,
        identity,
        plugins: plugins.clone(),
        opened,
        bills,
        daemon,
        jobs: names.len(),
        manager: Arc::clone(&manager),
        last_billing,
        source,
        http,
        expected,
        pings,
        password,
        concealed,
    };
    let mut followed = Followed { in_force: Some(Box::new(in_force)), reload: None, again: false };
    let signal = followed.until_signal(&scheduler, &manager, &mut ringer, &mut hangups, &mut signals).await;
    let mut in_force = followed.finish().await;
    let drain_timeout = in_force.daemon.drain_timeout;
    manager.notify(Notification::Stopping { within: drain_timeout + STOP_GRACE + END_TIMEOUT });
    manager.notify_status(&format_args!("stopping after {signal}: runs in progress continue"));
    info!("{signal}: nothing new starts; runs in progress continue for up to {} s", drain_timeout.as_secs());
    let drain = drain(&scheduler, drain_timeout, &mut signals);
    let drained = feeding_watchdog(drain, &mut ringer, &manager).await;
    ringer.stop().await;
    renewals.stop();
    presence.stop().await;
    if let Some(server) = server {
        server.stop().await;
    }
    let signs = last_signs(in_force.pings.clone());
    let (stopped, (), ()) = tokio::join!(status.stop(), in_force.reloads.finish(), signs);
    close(db).await?;
    stopped.map_err(|error| Failure::database("write that the daemon stopped", &error))?;
    ended_in_time(drained)
}

fn ended_in_time(drained: DrainReport) -> Result<(), Failure> {
    if drained.abandoned > 0 {
        let message =
            format!("stopped, but {} runs did not end in time and run again later", drained.abandoned);
        return Err(Failure::new(Exit::Internal, message));
    }
    info!("stopped");
    Ok(())
}

fn listen() -> Result<(Signals, ReloadSignal), Failure> {
    let deaf = |error| Failure::new(Exit::Internal, format!("cannot listen to signals: {error}"));
    Ok((Signals::listen().map_err(deaf)?, ReloadSignal::listen().map_err(deaf)?))
}

/// Says what runs, and where.
fn announce(identity: &Identity, jobs: &[String], bills: bool, (panel, presence): (&Panel, &PanelPresence)) {
    info!(
        daemon.id = %identity.daemon_id,
        panel = %panel.generation,
        "billing-daemon {} runs {} as {}, {presence}",
        env!("CARGO_PKG_VERSION"),
        jobs.join(", "),
        identity.daemon_id,
    );
    if !bills {
        warn!("no job of kind `{BILLING_JOB}` is enabled: this daemon charges nothing");
    }
}

/// Waits for the end of the runs; a daemon that waits is not one that hangs.
async fn feeding_watchdog(
    drain: impl Future<Output = DrainReport>,
    ringer: &mut Ticker,
    manager: &ServiceManager,
) -> DrainReport {
    let mut pulse = Watchdog::new(manager.watchdog());
    let mut drain = std::pin::pin!(drain);
    loop {
        tokio::select! {
            report = &mut drain => return report,
            () = ringer.ring() => pulse.ticked(manager),
        }
    }
}

/// Waits for the runs in progress. A second signal asks them to stop, and a third one ends the process at once.
async fn drain(scheduler: &Scheduler, timeout: Duration, signals: &mut Signals) -> DrainReport {
    let mut drained = std::pin::pin!(scheduler.drain(timeout));
    let second = tokio::select! {
        report = &mut drained => return report,
        second = signals.next() => second,
    };
    warn!(
        "{second} while stopping: runs in progress are requested to stop; another signal ends the process at once"
    );
    scheduler.interrupt();
    tokio::select! {
        report = drained => report,
        third = signals.next() => {
            error!("{third} while stopping: the process ends at once");
            std::process::exit(third.exit_code());
        }
    }
}

/// Waits for the last signs of jobs, which a slow server may take its time for.
async fn last_signs(pings: Pings) {
    // This fails only if it panics, and then that is told already.
    let _ = tokio::task::spawn_blocking(move || pings.close()).await;
}

async fn close(db: DatabaseConnection) -> Result<(), Failure> {
    // A run that was left may never give its connection back; the end of the process takes that away.
    let Ok(closed) = tokio::time::timeout(CLOSE_TIMEOUT, db.close()).await else { return Ok(()) };
    closed.map_err(|error| Failure::database("close the database", &error))
}

/// Begins to measure, and to answer who asks.
async fn serve(
    settings: &HttpSettings,
    opened: PanelDatabase,
    expected: Arc<RwLock<Arc<Expected>>>,
) -> Result<Server, Failure> {
    let internal =
        |error: &dyn std::fmt::Display| Failure::new(Exit::Internal, format!("cannot measure: {error}"));
    let recorder = crate::telemetry::metrics::recorder().map_err(|error| internal(&error))?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| internal(&error))?;
    crate::telemetry::metrics::begin();
    let shared = AppState::new(opened, expected, handle);
    Server::start(settings, shared).await.map_err(|error| {
        let message =
            format!("cannot answer HTTP, as `listen` in the [http] section of jobs.toml says: {error}");
        Failure::new(Exit::Configuration, message)
    })
}

fn silent_jobs(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Internal, format!("no thread for the signs of jobs: {error}"))
}

/// The configuration in force. While its file is read again, a separate task holds it: the task that ticks the scheduler waits
/// for no validation.
struct Followed {
    /// `None` during a reload.
    in_force: Option<Box<RunningDaemon>>,
    reload: Option<JoinHandle<Box<RunningDaemon>>>,
    /// A reload was requested during another one.
    again: bool,
}

impl Followed {
    /// Rings the scheduler, and puts what changes into force, until a signal ends that.
    async fn until_signal(
        &mut self,
        scheduler: &Scheduler,
        manager: &ServiceManager,
        ringer: &mut Ticker,
        hangups: &mut ReloadSignal,
        signals: &mut Signals,
    ) -> ShutdownSignal {
        let mut pulse = Watchdog::new(manager.watchdog());
        // The first ring may be a second away, and a panel waits for the first heartbeat.
        scheduler.tick();
        manager.notify(Notification::Ready);
        loop {
            if let Some(in_force) = &self.in_force {
                in_force.notify_status();
            }
            tokio::select! {
                () = ringer.ring() => {
                    scheduler.tick();
                    pulse.ticked(manager);
                    if self.in_force.as_mut().is_some_and(|in_force| in_force.has_changed()) {
                        self.begin_reload(scheduler);
                    }
                }
                () = hangups.next() => self.begin_reload(scheduler),
                () = self.reloaded() => {
                    if std::mem::take(&mut self.again) {
                        self.begin_reload(scheduler);
                    }
                }
                signal = signals.next() => return signal,
            }
        }
    }

    /// Begins a reload, or notes that another one is to follow.
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

    /// Returns when a reload has ended, and waits while there is none. Loses nothing if it is dropped.
    async fn reloaded(&mut self) {
        let Some(reload) = &mut self.reload else { return std::future::pending().await };
        self.in_force = Some(ended(reload.await));
        self.reload = None;
    }

    /// The configuration in force, after the reload in progress.
    async fn finish(mut self) -> Box<RunningDaemon> {
        loop {
            match self.in_force.take() {
                Some(in_force) => return in_force,
                None => self.reloaded().await,
            }
        }
    }
}

fn ended(reload: Result<Box<RunningDaemon>, JoinError>) -> Box<RunningDaemon> {
    // Nothing cancels a reload.
    reload.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Hides the password of the database, and what the jobs of `config` hand to programs and servers, in the history and in the log.
fn conceal(registry: &mut Registry, config: &Config, password: &[String], concealed: &Concealed) {
    let secrets = config.secrets(registry);
    registry.conceal(secrets.iter().chain(password));
    concealed.add(secrets);
}

/// What the jobs of a running daemon are made with.
struct RunningDaemon {
    services: Services,
    identity: Identity,
    plugins: Plugins,
    opened: PanelDatabase,
    bills: bool,
    daemon: DaemonSettings,
    jobs: usize,
    manager: Arc<ServiceManager>,
    last_billing: LastBilling,
    source: Option<ConfigFile>,
    reloads: ReloadAudit,
    http: Option<HttpSettings>,
    /// What those who answer over HTTP judge by.
    expected: Arc<RwLock<Arc<Expected>>>,
    pings: Pings,
    password: Vec<String>,
    /// What no line of the log shows.
    concealed: Concealed,
}

impl RunningDaemon {
    /// Tells the service manager what the daemon does.
    fn notify_status(&self) {
        self.manager.notify_status(&self.last_billing.status_line(self.jobs));
    }

    /// Whether the file has another text than the one in force.
    fn has_changed(&mut self) -> bool {
        self.source.as_mut().is_some_and(ConfigFile::has_changed)
    }

    /// Reads the configuration again and puts it into force, or says why not.
    async fn reload(&mut self, scheduler: &Scheduler) {
        if let Some(mut source) = self.source.take() {
            self.manager.notify(Notification::Reloading);
            let span = debug_span!("reload", config.file = source.name(), outcome = Empty, error = Empty);
            let accepted = self.accept(scheduler, &mut source).instrument(span.clone()).await;
            tell_outcome(&span, accepted);
            crate::telemetry::metrics::reloaded(accepted);
            self.manager.notify(Notification::Ready);
            self.source = Some(source);
        } else {
            info!("this daemon has no file to read again");
        }
    }

    /// Whether what the file says now is in force.
    async fn accept(&mut self, scheduler: &Scheduler, source: &mut ConfigFile) -> bool {
        let name = source.name();
        let config = match block_in_place(|| source.read_again()) {
            Ok(config) => config,
            Err(problems) => {
                for problem in &problems {
                    error!("{problem}");
                }
                let plural = if problems.len() == 1 { "problem" } else { "problems" };
                error!(
                    reloaded = false,
                    "{name} has {} {plural}: everything stays as it was",
                    problems.len()
                );
                return false;
            }
        };
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let bills = config.bills();
        let mut needs_guard = self.services.needs_guard;
        if bills && !self.bills {
            let billing = self.daemon.panel_billing;
            let found = PanelPresence::detect_with_timeout(self.opened.clone()).await;
            match found.and_then(|presence| {
                presence.ensure_may_charge(billing).map(|()| presence.needs_guard(billing))
            }) {
                Ok(needed) => needs_guard = needed,
                Err(failure) => {
                    error!(reloaded = false, "{}; everything stays as it was", failure.message);
                    return false;
                }
            }
        }
        let interval = config.billing_interval_or_default();
        let other_interval = interval != self.services.billing_interval;
        let expected = Arc::new(Expected {
            // What waits for the next start is not in force.
            panel_billing: self.daemon.panel_billing,
            ..Expected::from(&config)
        });
        let services = Services { billing_interval: interval, needs_guard, ..self.services.clone() };
        let mut registry = registry(&services, &self.plugins);
        conceal(&mut registry, &config, &self.password, &self.concealed);
        // Both use the time between two billings: how long a new daemon is given, and when the panel may bill.
        let renew = |spec: &JobSpec| other_interval && [HEARTBEAT, BILLING_JOB].contains(&spec.kind.as_str());
        let jobs = config.jobs.len();
        let changes = match block_in_place(|| scheduler.reload(&registry, config.jobs, renew)) {
            Ok(changes) => changes,
            Err(error) => {
                error!(reloaded = false, "{name}: {error}; everything stays as it was");
                return false;
            }
        };
        crate::telemetry::metrics::in_force(&changes.added);
        (self.services, self.bills, self.jobs) = (services, bills, jobs);
        self.identity.set_billing_interval(config.billing_interval);
        self.services.status.set_metadata(&self.identity.metadata);
        *self.expected.write().unwrap_or_else(PoisonError::into_inner) = expected;
        let signs = self.pings.replace(config.pings).unwrap_or_else(|error| {
            error!("{name}: {}; signs go where they went", silent_jobs(&error).message);
            Vec::new()
        });
        // What came or went with its job was told with it.
        let present = |job: &&String| !changes.added.contains(*job) && !changes.removed.contains(*job);
        let signs: Vec<_> = signs.iter().filter(present).collect();
        if changes.is_empty() && signs.is_empty() {
            info!(reloaded = true, "{name} was read again: no job is different");
        } else {
            for change in changes.to_string().lines() {
                info!("{name}: {change}");
            }
            for job in signs {
                info!("{name}: {job}: ping");
            }
            info!(reloaded = true, "{name} is in force");
        }
        if !self.bills {
            warn!("no job of kind `{BILLING_JOB}` is enabled: this daemon charges nothing");
        }
        let waiting = waiting((&self.daemon, self.http.as_ref()), (&config.daemon, config.http.as_ref()));
        if !waiting.is_empty() {
            let verb = if waiting.len() == 1 { "comes" } else { "come" };
            warn!("{name}: {} {verb} into force at the next start", waiting.join(", "));
        }
        self.daemon.drain_timeout = config.daemon.drain_timeout;
        self.reloads.accepted(source, &changes);
        true
    }
}

fn tell_outcome(reload: &Span, accepted: bool) {
    if accepted {
        reload.record("outcome", "accepted");
    } else {
        reload.record("outcome", "refused").record("error", "everything stays as it was");
    }
}

/// Renews leases from a thread of its own: a job that blocks every thread of the runtime does not lose its lease.
struct Renewals {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Renewals {
    fn start(scheduler: Scheduler, every: Duration) -> Result<Self, Failure> {
        let internal =
            |error| Failure::new(Exit::Internal, format!("cannot start the renewal of leases: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(internal)?;
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let renew = async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(every) => scheduler.renew_leases().await,
                    _ = &mut stopped => return,
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("lease-renewal".to_owned())
            .spawn(move || runtime.block_on(renew))
            .map_err(internal)?;
        Ok(Self { stop, thread })
    }

    fn stop(self) {
        // Both fail only if the thread has ended already.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}
