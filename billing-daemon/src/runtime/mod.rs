//! The running daemon: it starts the jobs, ticks the scheduler until a signal arrives, and then drains it.

mod config_watch;
mod drain;
mod presence;
pub mod reload;
mod reload_audit;
mod running_daemon;
pub(crate) mod signals;
mod status_problems;
mod ticker;

use std::{
    fmt::Display,
    sync::{Arc, RwLock},
    time::Duration,
};

use billing_jobs::{Services, daemon_status::StatusRow};
use billing_kinds::Pings;
use billing_scheduler::{Clock, LeaseRenewal, STOP_GRACE, Scheduler, SystemClock};
use billing_store::{Database, DedicatedConnection, SeaOrmStore};
use tracing::{error, info, warn};

#[cfg(feature = "console")]
use crate::console;
use crate::{
    config::{Config, http::HttpSettings},
    exit::{Exit, Failure},
    host::{identity::Identity, open_files, platform::Platform},
    http::{AppState, Server, Token},
    panel_database::{PanelDatabase, open, restore_detection},
    plugins::{Plugins, kinds_for_validation, registry},
    runtime::{
        config_watch::ConfigWatch,
        presence::Presence,
        reload::ConfigFile,
        reload_audit::ReloadAudit,
        running_daemon::{ReloadLoop, RunningDaemon, Secrets, warn_without_billing},
        signals::{ReloadSignal, Signals},
        status_problems::StatusProblems,
        ticker::Ticker,
    },
    service_manager::{LastBilling, Notification, ServiceManager},
    status::{Expected, panel_presence::PanelPresence},
    telemetry::{mask::Concealed, metered_store::MeteredStore, metrics as measured},
};

/// How long the shutdown takes after the runs: HTTP requests, the last row, the connections.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a control request waits at most while no job runs.
const IDLE_POLL_SECONDS: u32 = 2;

/// The kind of the job that reports to the panel that billing works.
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
    let token = config.http.as_ref().and_then(|http| http.token.as_ref()).map(Token::read).transpose();
    let token = token.map_err(|error| {
        Failure::new(Exit::Configuration, format!("cannot use `token` of [http] in jobs.toml: {error}"))
    })?;
    open_files::raise_limit();
    if let Some(limit) = open_files::limit().filter(|limit| *limit < open_files::NEEDED) {
        let needed = open_files::NEEDED;
        warn!(
            "this process may open only {limit} files, and needs {needed}: raise `LimitNOFILE` of the service, or `ulimit -n`"
        );
    }
    // Files may not respond. Until here SIGTERM ends the process at once.
    let job_secrets = config.secrets(&kinds_for_validation(plugins));
    let manager = Arc::new(ServiceManager::from_process());
    let deaf = |error| internal("listen to signals", &error);
    let mut signals = Signals::listen().map_err(deaf)?;
    let mut reload_signal = ReloadSignal::listen().map_err(deaf)?;
    let panel_database = tokio::select! {
        opened = open(&database) => opened?,
        never = manager.report_waiting("the database") => match never {},
        signal = signals.next() => {
            info!("{signal} before the start: nothing was begun");
            return Ok(());
        }
    };
    let start = Start {
        config,
        token,
        job_secrets,
        source,
        database,
        plugins,
        identity,
        concealed,
        manager: Arc::clone(&manager),
    };
    let Started { in_force, watch, scheduler, renewals, mut presence, mut ticker, server } =
        start.start(panel_database.clone()).await?;

    let status = Arc::clone(&in_force.services.status);
    let mut reload_loop = ReloadLoop::new(in_force, watch);
    let running = reload_loop.run(&scheduler, &manager, &mut ticker, &mut reload_signal, &mut signals);
    let (cause, failure) = tokio::select! {
        signal = running => (signal.to_string(), None),
        error = presence.failure() => {
            error!("{error}");
            ("the database file was replaced".to_owned(), Some(Failure::new(Exit::TryAgain, error)))
        }
    };
    let mut in_force = reload_loop.finish().await;

    let timeout = in_force.daemon.drain_timeout;
    manager.notify(Notification::Stopping { within: timeout + STOP_GRACE + SHUTDOWN_TIMEOUT });
    manager.notify_status(&format_args!("stopping after {cause}: runs in progress continue"));
    info!("{cause}: nothing new starts; runs in progress continue for up to {} s", timeout.as_secs());
    let drained = drain::drain(&scheduler, timeout, &mut signals, &mut ticker, &manager).await;
    ticker.stop().await;
    renewals.stop();
    presence.stop().await;
    if let Some(server) = server {
        server.stop().await;
    }
    let pings = drain::finish_pings(in_force.pings.clone());
    let (stopped, (), ()) = tokio::join!(status.stop(), in_force.reloads.finish(), pings);
    drain::close(panel_database.db).await?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    stopped.map_err(|error| Failure::database("write that the daemon stopped", &error))?;
    drain::result_of(drained)
}

/// What a daemon starts with.
struct Start<'a> {
    config: Config,
    token: Option<Token>,
    job_secrets: Vec<String>,
    source: Option<ConfigFile>,
    database: Database,
    plugins: &'a Plugins,
    identity: Identity,
    concealed: Concealed,
    manager: Arc<ServiceManager>,
}

/// A daemon whose scheduler was not ticked yet.
struct Started {
    in_force: RunningDaemon,
    watch: Option<ConfigWatch>,
    scheduler: Scheduler,
    renewals: LeaseRenewal,
    presence: Presence,
    ticker: Ticker,
    server: Option<Server>,
}

impl Start<'_> {
    async fn start(self, panel_database: PanelDatabase) -> Result<Started, Failure> {
        let Self { config, token, job_secrets, source, database, plugins, identity, concealed, manager } =
            self;
        let panel_presence = PanelPresence::detect(&panel_database).await?;
        let bills = config.bills();
        if bills {
            panel_presence.ensure_may_charge(config.daemon.panel_billing)?;
        }
        let expected = Arc::new(RwLock::new(Arc::new(Expected::from(&config))));
        let mut process_secrets = database.url().secrets();
        process_secrets.extend(token.as_ref().map(|token| token.expose().to_owned()));
        concealed.add(process_secrets.clone());
        let server = match &config.http {
            Some(settings) => {
                Some(serve(settings, token, &database, panel_database.clone(), Arc::clone(&expected)).await?)
            }
            None => None,
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let problems = StatusProblems { opened: panel_database.clone(), expected: Arc::clone(&expected) };
        let lease_ttl = config.daemon.lease_ttl;
        let (db, daemon_id) = (panel_database.db.clone(), &identity.daemon_id);
        let store = SeaOrmStore::new(db, database.clone(), daemon_id, lease_ttl, Arc::clone(&clock));
        let services = Services {
            problems: Some(Arc::new(problems)),
            needs_guard: panel_presence.needs_guard(config.daemon.panel_billing),
            ..services(&config, &database, &panel_database, &identity, store.connection(), &clock)
        };
        let mut registry = registry(&services, plugins);
        let last_billing = LastBilling::default();
        registry.layer(last_billing.clone());
        let secrets = Secrets { process: process_secrets, log: concealed };
        secrets.conceal(&mut registry, job_secrets);
        let pings = Pings::new(config.pings).map_err(|error| ping_setup_failed(&error))?;
        registry.layer(pings.clone());

        let names: Vec<String> = config.jobs.iter().map(|(spec, _)| spec.name.clone()).collect();
        let has_heartbeat = config.jobs.iter().any(|(spec, _)| spec.kind == HEARTBEAT);
        measured::in_force(&names);
        let scheduler = Scheduler::build(&registry, config.jobs, Arc::new(MeteredStore(store)), clock)
            .map_err(|error| Failure::new(Exit::Configuration, error))?;
        scheduler.poll_idle_every(IDLE_POLL_SECONDS);
        services.status.report_clock(scheduler.clock());
        let renewals = LeaseRenewal::start(scheduler.clone())
            .map_err(|error| internal("start the renewal of leases", &error))?;
        let presence =
            Presence::start(Arc::clone(&services.status), Arc::clone(&services.restores), has_heartbeat);
        let ticker = Ticker::start().await.map_err(|error| internal("start the ticker", &error))?;
        log_startup(&identity, &names, &panel_database, panel_presence);
        warn_without_billing(bills);

        let in_force = RunningDaemon {
            reloads: ReloadAudit::new(&services, source.as_ref()),
            services,
            identity,
            plugins: plugins.clone(),
            panel_database,
            bills,
            daemon: config.daemon,
            jobs: names.len(),
            manager,
            last_billing,
            http: config.http,
            expected,
            pings,
            secrets,
        };
        let watch = source.map(ConfigWatch::start).transpose();
        let watch = watch.map_err(|error| internal("start the thread for jobs.toml", &error))?;
        Ok(Started { in_force, watch, scheduler, renewals, presence, ticker, server })
    }
}

fn services(
    config: &Config,
    database: &Database,
    opened: &PanelDatabase,
    identity: &Identity,
    connection: &DedicatedConnection,
    clock: &Arc<dyn Clock>,
) -> Services {
    let Identity { daemon_id, hostname, metadata } = identity;
    let PanelDatabase { db, panel } = opened;
    Services {
        db: db.clone(),
        panel: *panel,
        status: Arc::new(StatusRow::new(connection.clone(), daemon_id, hostname, metadata)),
        started: clock.monotonic(),
        billing_interval: config.billing_interval_or_default(),
        deliveries: config.deliveries(),
        problems: None,
        needs_guard: true,
        restores: restore_detection(&config.daemon, database, connection.clone(), daemon_id),
        clock: Arc::clone(clock),
    }
}

/// Installs the metrics and starts the HTTP server.
async fn serve(
    settings: &HttpSettings,
    token: Option<Token>,
    database: &Database,
    panel_database: PanelDatabase,
    expected: Arc<RwLock<Arc<Expected>>>,
) -> Result<Server, Failure> {
    let recorder = measured::recorder().map_err(|error| internal("install the metrics", &error))?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| internal("install the metrics", &error))?;
    measured::begin();
    let state = AppState::new(panel_database.clone(), expected, handle);
    #[cfg(feature = "console")]
    let mounted = match &settings.console {
        Some(console) => {
            let mounted = console::mount(console, database, &panel_database, Arc::clone(&state));
            Some(Box::pin(mounted).await?)
        }
        None => None,
    };
    #[cfg(not(feature = "console"))]
    let mounted = None;
    Server::start(settings, token, state, mounted).await.map_err(|error| {
        let message = format!("cannot serve HTTP at `listen` of [http] in jobs.toml: {error}");
        Failure::new(Exit::Configuration, message)
    })
}

fn log_startup(identity: &Identity, jobs: &[String], database: &PanelDatabase, presence: PanelPresence) {
    info!(
        daemon.id = %identity.daemon_id,
        panel = %database.panel.generation,
        "billing-daemon {} runs {} as {}, {presence}",
        env!("CARGO_PKG_VERSION"),
        jobs.join(", "),
        identity.daemon_id,
    );
}

fn ping_setup_failed(error: &std::io::Error) -> Failure {
    internal("start the thread for pings", error)
}

fn internal(action: &str, error: &dyn Display) -> Failure {
    Failure::new(Exit::Internal, format!("cannot {action}: {error}"))
}
