//! The HTTP server: a read-only interface for a panel or Prometheus, and what another room mounts. It is off unless configured, and for
//! this host alone unless it has a token.

mod access;
mod connections;
pub(crate) mod gauges;
mod handlers;
mod openapi;
mod peer;
#[cfg(unix)]
mod socket;
mod standings;
mod token;
mod trace;

use std::{
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::StatusCode,
    middleware,
    routing::{MethodRouter, get},
};
use metrics_exporter_prometheus::PrometheusHandle;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    net::TcpListener,
    sync::{Mutex, oneshot},
    task::JoinHandle,
};
use tower_http::{limit::RequestBodyLimitLayer, timeout::TimeoutLayer};
use tracing::info;

use crate::{
    config::http::{HttpSettings, Listen},
    exit::Failure,
    host::open_files,
    panel_database::PanelDatabase,
    status::{self, Expected, Status},
};
use access::AccessPolicy;
pub use openapi::document;
pub(crate) use peer::PeerIdentity;
pub(crate) use token::Token;

/// No request needs a body.
const MAX_BODY_BYTES: usize = 4 << 10;
/// The maximum duration of a response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a status is reused, so that many readers cost the database no more than one.
const STATUS_CACHE_TTL: Duration = Duration::from_secs(2);
/// How often the samples of histograms are aggregated, even without a scrape.
const UPKEEP: Duration = Duration::from_secs(5);

/// The data that the handlers share.
pub(crate) struct AppState {
    opened: PanelDatabase,
    expected: Arc<RwLock<Arc<Expected>>>,
    metrics: PrometheusHandle,
    last: RwLock<Option<(Instant, Arc<Status>)>>,
    /// Held while the status is read, so that one reader reads it for all.
    reading: Mutex<()>,
    /// The paths of what is mounted.
    mounted: OnceLock<utoipa::openapi::Paths>,
}

/// Pages that another room serves on the same listener. Their router checks who sends a request and whether it may change something.
pub(crate) struct Mounted {
    /// The path below which requests may change something.
    pub(crate) path: String,
    pub(crate) router: Router<Arc<AppState>>,
    /// Its paths for programs.
    pub(crate) documented: utoipa::openapi::Paths,
}

impl AppState {
    pub(crate) fn new(
        opened: PanelDatabase,
        expected: Arc<RwLock<Arc<Expected>>>,
        metrics: PrometheusHandle,
    ) -> Arc<Self> {
        Arc::new(Self {
            opened,
            expected,
            metrics,
            last: RwLock::default(),
            reading: Mutex::default(),
            mounted: OnceLock::new(),
        })
    }

    /// The parts of the current configuration that the status is compared with.
    pub(crate) fn expected(&self) -> Arc<Expected> {
        Arc::clone(&self.expected.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The status of billing, at most [`STATUS_CACHE_TTL`] old.
    pub(crate) async fn status(&self) -> Result<Arc<Status>, Failure> {
        let _reading = self.reading.lock().await;
        if let Some((read, status)) = self.last_read()
            && read.elapsed() < STATUS_CACHE_TTL
        {
            return Ok(status);
        }
        let status = Arc::new(status::read(&self.opened, &self.expected()).await?);
        *self.last.write().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), Arc::clone(&status)));
        Ok(status)
    }

    fn last_read(&self) -> Option<(Instant, Arc<Status>)> {
        self.last.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(feature = "console")]
impl AppState {
    /// The panel's database, with the connections of billing.
    pub(crate) fn database(&self) -> &PanelDatabase {
        &self.opened
    }

    /// Reads the status again for the next request, because it has changed.
    pub(crate) async fn expire_status(&self) {
        // A status that is being read may be older than the change.
        let _reading = self.reading.lock().await;
        if let Some((read, _)) = &mut *self.last.write().unwrap_or_else(PoisonError::into_inner) {
            *read = read.checked_sub(STATUS_CACHE_TTL).unwrap_or(*read);
        }
    }

    /// The status that was read last, however old it is.
    pub(crate) fn last_status(&self) -> Option<Arc<Status>> {
        self.last_read().map(|(_, status)| status)
    }
}

/// The paths of the interface, each with its handler.
fn routes() -> [(&'static str, MethodRouter<Arc<AppState>>); 10] {
    [
        ("/healthz", get(handlers::healthz)),
        ("/readyz", get(handlers::readyz)),
        ("/metrics", get(handlers::metrics)),
        ("/api/status", get(handlers::status)),
        ("/api/jobs", get(handlers::jobs)),
        ("/api/runs", get(handlers::runs)),
        ("/api/standings", get(standings::standings)),
        ("/api/standings/{organization}/instances", get(standings::instances)),
        ("/api/health/billing-daemon", get(handlers::panel_health)),
        ("/api/openapi.json", get(handlers::openapi)),
    ]
}

/// The paths behind the access rules.
fn router(shared: Arc<AppState>, policy: AccessPolicy, mounted: Option<Mounted>) -> Router {
    routes()
        .into_iter()
        .fold(Router::new(), |router, (path, handler)| router.route(path, handler))
        .merge(mounted.map(|mounted| mounted.router).unwrap_or_default())
        .fallback(handlers::not_found)
        .layer(RequestBodyLimitLayer::new(MAX_BODY_BYTES))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, REQUEST_TIMEOUT))
        .layer(middleware::from_fn_with_state(Arc::new(policy), access::check))
        .layer(middleware::from_fn(trace::answer))
        .with_state(shared)
}

/// The future that serves requests until the server stops.
type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A running server.
pub(crate) struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    socket: Option<PathBuf>,
}

impl Server {
    /// Listens at `settings.listen`; requests need the `token`, if there is one. `mounted` is served as well.
    pub(crate) async fn start(
        settings: &HttpSettings,
        token: Option<Token>,
        shared: Arc<AppState>,
        mounted: Option<Mounted>,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            let _ = stopped.await;
        };
        let metrics = shared.metrics.clone();
        let policy = AccessPolicy::new(settings, token, mounted.as_ref().map(|mounted| mounted.path.clone()));
        if let Some(mounted) = &mounted {
            let _ = shared.mounted.set(mounted.documented.clone());
        }
        let router = router(shared, policy, mounted);
        let limit = connections::limit(open_files::limit());
        let (serving, socket): (Serving, _) = match &settings.listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                info!("listening for HTTP on {}", listener.local_addr()?);
                let identify = |_: &_, address: &SocketAddr| (*address).into();
                (Box::pin(connections::serve(listener, limit, router, identify, stopped)), None)
            }
            #[cfg(unix)]
            Listen::Unix(path) => {
                let listener = socket::listen(path, !settings.allowed_uids.is_empty()).await?;
                info!("listening for HTTP on {}", path.display());
                let identify = |stream: &UnixStream, _: &_| {
                    peer::PeerIdentity::User(stream.peer_cred().ok().map(|peer| peer.uid()))
                };
                (Box::pin(connections::serve(listener, limit, router, identify, stopped)), Some(path.clone()))
            }
            #[cfg(not(unix))]
            Listen::Unix(_) => {
                let message = "Unix sockets are not supported on this system: listen on 127.0.0.1:9464";
                return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, message));
            }
        };
        let task = tokio::spawn(async move {
            let upkeep = async {
                loop {
                    tokio::time::sleep(UPKEEP).await;
                    metrics.run_upkeep();
                }
            };
            tokio::select! {
                () = serving => {}
                () = upkeep => {}
            }
        });
        Ok(Self { stop, task, socket })
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        // A response may take longer.
        let abort = self.task.abort_handle();
        if tokio::time::timeout(Duration::from_secs(1), self.task).await.is_err() {
            abort.abort();
        }
        if let Some(socket) = self.socket {
            let _ = std::fs::remove_file(socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_documented() {
        let described: Vec<_> = document().paths.paths.into_keys().collect();
        let mut there: Vec<_> = routes().into_iter().map(|(path, _)| path).collect();
        there.sort_unstable();
        assert_eq!(described, there);
    }
}
