//! The read-only HTTP interface for a panel or Prometheus: on loopback or a Unix socket, off unless configured.

mod access;
pub(crate) mod gauges;
mod handlers;
mod openapi;
mod socket;
mod trace;

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::connect_info::Connected,
    http::StatusCode,
    middleware,
    routing::{MethodRouter, get},
    serve::IncomingStream,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    sync::{Mutex, oneshot},
    task::JoinHandle,
};
use tower_http::{limit::RequestBodyLimitLayer, timeout::TimeoutLayer};
use tracing::{info, warn};

use crate::{
    config::http::{HttpSettings, Listen},
    exit::Failure,
    panel_database::PanelDatabase,
    status::{self, Expected, Status},
};
use access::AccessPolicy;
pub use openapi::document;

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
    last: Mutex<Option<(Instant, Arc<Status>)>>,
}

impl AppState {
    pub(crate) fn new(
        opened: PanelDatabase,
        expected: Arc<RwLock<Arc<Expected>>>,
        metrics: PrometheusHandle,
    ) -> Arc<Self> {
        Arc::new(Self { opened, expected, metrics, last: Mutex::default() })
    }

    /// The parts of the current configuration that the status is compared with.
    fn expected(&self) -> Arc<Expected> {
        Arc::clone(&self.expected.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The status of billing, at most [`STATUS_CACHE_TTL`] old.
    async fn status(&self) -> Result<Arc<Status>, Failure> {
        let mut last = self.last.lock().await;
        if let Some((read, status)) = &*last
            && read.elapsed() < STATUS_CACHE_TTL
        {
            return Ok(Arc::clone(status));
        }
        let status = Arc::new(status::read(&self.opened, &self.expected()).await?);
        *last = Some((Instant::now(), Arc::clone(&status)));
        Ok(status)
    }
}

/// The paths of the interface, each with its handler.
fn routes() -> [(&'static str, MethodRouter<Arc<AppState>>); 8] {
    [
        ("/healthz", get(handlers::healthz)),
        ("/readyz", get(handlers::readyz)),
        ("/metrics", get(handlers::metrics)),
        ("/api/status", get(handlers::status)),
        ("/api/jobs", get(handlers::jobs)),
        ("/api/runs", get(handlers::runs)),
        ("/api/health/billing-daemon", get(handlers::panel_health)),
        ("/api/openapi.json", get(handlers::openapi)),
    ]
}

/// The paths behind the access rules.
fn router(shared: Arc<AppState>, policy: AccessPolicy) -> Router {
    routes()
        .into_iter()
        .fold(Router::new(), |router, (path, handler)| router.route(path, handler))
        .fallback(handlers::not_found)
        .layer(RequestBodyLimitLayer::new(MAX_BODY_BYTES))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, REQUEST_TIMEOUT))
        .layer(middleware::from_fn_with_state(Arc::new(policy), access::check))
        .layer(middleware::from_fn(trace::answer))
        .with_state(shared)
}

/// The peer of a connection, as far as the transport identifies it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PeerIdentity {
    /// A process on this host.
    Loopback,
    /// The user id of a process on this host.
    #[cfg_attr(not(unix), expect(dead_code, reason = "only a Unix socket identifies its peer"))]
    User(Option<u32>),
}

impl Connected<IncomingStream<'_, TcpListener>> for PeerIdentity {
    fn connect_info(_: IncomingStream<'_, TcpListener>) -> Self {
        Self::Loopback
    }
}

/// The future that serves requests until the server stops.
type Serving = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>;

/// A running server.
pub(crate) struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    socket: Option<PathBuf>,
}

impl Server {
    pub(crate) async fn start(settings: &HttpSettings, shared: Arc<AppState>) -> std::io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            let _ = stopped.await;
        };
        let metrics = shared.metrics.clone();
        let router = router(shared, AccessPolicy::new(settings));
        let service = router.into_make_service_with_connect_info::<PeerIdentity>();
        let (serving, socket): (Serving, _) = match &settings.listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                info!("listening for HTTP on {}", listener.local_addr()?);
                let serving = axum::serve(listener, service).with_graceful_shutdown(stopped).into_future();
                (Box::pin(serving), None)
            }
            Listen::Unix(path) => {
                let shared = !settings.allowed_uids.is_empty();
                (socket::serve(path, shared, service, stopped).await?, Some(path.clone()))
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
                ended = serving => if let Err(error) = ended {
                    warn!(%error, "the HTTP server failed: {error}");
                },
                () = upkeep => {}
            }
        });
        Ok(Self { stop, task, socket })
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        // A client may keep its connection open without limit.
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

    #[test]
    fn only_local_addresses_are_accepted() {
        for (text, accepted) in [
            ("127.0.0.1:9464", true),
            ("[::1]:9464", true),
            ("unix:/run/billing-daemon/http.sock", true),
            ("0.0.0.0:9464", false),
            ("10.0.0.1:9464", false),
            ("[::]:9464", false),
            ("unix:http.sock", false),
            ("localhost:9464", false),
            ("9464", false),
        ] {
            assert_eq!(text.parse::<Listen>().is_ok(), accepted, "{text}");
        }
    }
}
