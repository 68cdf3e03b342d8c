//! Accepts HTTP connections within limits, so that no client takes the descriptors and the memory that billing needs.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Extension, Router, extract::ConnectInfo, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::peer::PeerIdentity;
use crate::host::open_files::{NEEDED, RESERVED_FOR_BILLING};

/// How long a client may take to send the header of its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last. It carries one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// How large the header of a request may be.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// How many connections may be open. A further one is closed at once.
const MAX_CONNECTIONS: u64 = 64;
/// How many connections remain if this process may open fewer files than billing needs.
const MIN_CONNECTIONS: u64 = 4;
/// How often closed connections are logged at most.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

const _: () = assert!(RESERVED_FOR_BILLING + MAX_CONNECTIONS <= NEEDED);

/// Returns how many connections may be open if this process may open `files` files.
pub(super) fn limit(files: Option<u64>) -> u64 {
    let left = files.map_or(MAX_CONNECTIONS, |files| files.saturating_sub(RESERVED_FOR_BILLING));
    left.clamp(MIN_CONNECTIONS, MAX_CONNECTIONS)
}

/// The open connections of each peer. One peer may have half of all.
struct Connections {
    limit: u64,
    open: Mutex<HashMap<PeerIdentity, u64>>,
}

/// An open connection, which no longer counts when this is dropped.
struct Slot {
    connections: Arc<Connections>,
    peer: PeerIdentity,
}

impl Connections {
    fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, open: Mutex::default() })
    }

    /// Counts a connection of `peer`; `None` if too many are open.
    fn open(self: &Arc<Self>, peer: PeerIdentity) -> Option<Slot> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let of_all: u64 = open.values().sum();
        let of_peer = open.get(&peer).copied().unwrap_or_default();
        if of_all >= self.limit || of_peer >= self.limit / 2 {
            return None;
        }
        open.insert(peer, of_peer + 1);
        Some(Slot { connections: Arc::clone(self), peer })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_peer) = open.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

/// Serves at most `limit` connections of `listener` until `stopped`, then completes the requests in progress.
pub(super) async fn serve<L: Listener>(
    mut listener: L,
    limit: u64,
    router: Router,
    identify: impl Fn(&L::Io, &L::Addr) -> PeerIdentity,
    stopped: impl Future<Output = ()>,
) {
    let connections = Connections::new(limit);
    let shutdown = GracefulShutdown::new();
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        // An idle connection would keep its slot from other clients.
        .keep_alive(false);
    // Its drop ends the connections that are left after the shutdown.
    let mut tasks = JoinSet::new();
    let mut warned: Option<Instant> = None;
    let mut stopped = pin!(stopped);
    loop {
        let (io, address) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => break,
        };
        while tasks.try_join_next().is_some() {}
        let peer = identify(&io, &address);
        let Some(slot) = connections.open(peer) else {
            if warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL) {
                warned = Some(Instant::now());
                warn!(
                    "closed an HTTP connection of {peer}: at most {} of one client and {limit} in total may be open",
                    limit / 2
                );
            }
            continue;
        };
        let service = TowerToHyperService::new(router.clone().layer(Extension(ConnectInfo(peer))));
        let connection = shutdown.watch(server.serve_connection(TokioIo::new(io), service));
        tasks.spawn(async move {
            match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "an HTTP connection of {peer} failed: {error}"),
                Err(_) => debug!("closed an HTTP connection of {peer}: it took too long"),
            }
            drop(slot);
        });
    }
    drop(listener);
    shutdown.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_open_files_lower_connection_limit() {
        for (files, expected) in
            [(None, 64), (Some(1024), 64), (Some(256), 64), (Some(200), 8), (Some(100), 4)]
        {
            assert_eq!(limit(files), expected, "{files:?}");
        }
    }

    #[test]
    fn one_peer_leaves_connections_for_others() {
        let connections = Connections::new(64);
        let peer = |number| PeerIdentity::User(Some(number));
        let of_one: Vec<_> = (0..100).map_while(|_| connections.open(peer(1))).collect();
        assert_eq!(of_one.len(), 32);
        let of_another: Vec<_> = (0..100).map_while(|_| connections.open(peer(2))).collect();
        assert_eq!(of_another.len(), 32);
        assert!(connections.open(peer(3)).is_none(), "all are open");
        drop(of_one);
        assert!(connections.open(peer(2)).is_none(), "it has its half");
        assert!(connections.open(peer(3)).is_some());
        drop(of_another);
        assert!(connections.open.lock().expect("no test panicked").is_empty(), "closed ones are forgotten");
    }
}
