//! A relay of TCP connections that stops to forward without a sign to either end, as a network does that fails.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

use crate::faults::proxy::BATCH;

/// A relay on a separate port; closes its connections when it is dropped.
pub(super) struct Relay {
    port: u16,
    listener: JoinHandle<()>,
}

/// What is done to the connections of one or more relays.
#[derive(Debug, Default)]
pub(super) struct Network {
    /// Each change freezes every connection that was open before it.
    freezes: watch::Sender<u64>,
    /// Each change closes the frozen connections.
    releases: watch::Sender<u64>,
    /// Whether new connections are frozen from their start.
    is_down: AtomicBool,
    /// Whether the next batch of charges freezes every connection.
    freezes_at_batch: AtomicBool,
}

impl Network {
    /// Forwards nothing more on the open connections, and closes none. New connections work.
    pub(super) fn freeze(&self) {
        self.freezes.send_modify(|freezes| *freezes += 1);
    }

    /// The same as soon as a client sends a batch of charges; that batch is not forwarded.
    pub(super) async fn freeze_at_batch(&self) {
        let mut freezes = self.freezes.subscribe();
        self.freezes_at_batch.store(true, Ordering::Relaxed);
        // The sender is part of this value, so it is not closed.
        let _ = freezes.changed().await;
    }

    /// Forwards nothing more, on new connections neither.
    pub(super) fn disconnect(&self) {
        self.is_down.store(true, Ordering::Relaxed);
        self.freeze();
    }

    /// Ends all of this, and closes the frozen connections.
    pub(super) fn restore(&self) {
        self.freezes_at_batch.store(false, Ordering::Relaxed);
        self.is_down.store(false, Ordering::Relaxed);
        self.releases.send_modify(|releases| *releases += 1);
    }
}

impl Relay {
    /// A relay to this port of this host.
    ///
    /// # Errors
    /// If no port is free.
    pub(super) async fn start(server: u16, network: &Arc<Network>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let network = Arc::clone(network);
        let listener = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                // The ended ones are forgotten.
                while connections.try_join_next().is_some() {}
                connections.spawn(connection(client, server, Arc::clone(&network)));
            }
        });
        Ok(Self { port, listener })
    }

    /// The port that it listens on, on 127.0.0.1.
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// Forwards until either end closes the connection. A frozen one stays open until it is released.
async fn connection(client: TcpStream, server: u16, network: Arc<Network>) {
    let mut freezes = network.freezes.subscribe();
    // Held here, so that a freeze closes neither of them.
    let (mut from_client, mut to_client) = client.into_split();
    let mut server_halves = None;
    if !network.is_down.load(Ordering::Relaxed) {
        // The client sees a closed connection.
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else { return };
        let (from_server, to_server) = server_halves.insert(server.into_split());
        tokio::select! {
            _ = forward(&mut from_client, to_server, Some(&network)) => return,
            _ = forward(from_server, &mut to_client, None) => return,
            _ = freezes.changed() => {}
        }
    }
    // Fails only if the network itself is gone. What was released before concerns other connections.
    let _ = network.releases.subscribe().changed().await;
}

async fn forward(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    network: Option<&Network>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let bytes = &buffer[..length];
        if let Some(network) = network
            && network.freezes_at_batch.load(Ordering::Relaxed)
            && bytes.windows(BATCH.len()).any(|window| window == BATCH)
            && network.freezes_at_batch.swap(false, Ordering::Relaxed)
        {
            network.freeze();
            return std::future::pending().await;
        }
        to.write_all(bytes).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// Long enough for a byte on this host.
    const SILENCE: Duration = Duration::from_millis(200);

    /// A server that returns every byte, and a relay in front of it.
    async fn echo() -> (Arc<Network>, Relay) {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let port = server.local_addr().expect("a listener has an address").port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = client.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let network = Arc::new(Network::default());
        let relay = Relay::start(port, &network).await.expect("a port is free");
        (network, relay)
    }

    async fn client(relay: &Relay) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).await.expect("the relay listens")
    }

    /// Whether the text returns; an error is a closed connection.
    async fn returns(client: &mut TcpStream, text: &[u8]) -> io::Result<bool> {
        client.write_all(text).await?;
        let mut answer = vec![0; text.len()];
        match timeout(SILENCE, client.read_exact(&mut answer)).await {
            Ok(read) => read.map(|_| answer == text),
            Err(_) => Ok(false),
        }
    }

    #[tokio::test]
    async fn freeze_stops_open_connections_only() {
        let (network, relay) = echo().await;
        let mut old = client(&relay).await;
        assert!(returns(&mut old, b"text").await.expect("it is open"));
        // The end of an earlier freeze.
        network.restore();
        network.freeze();
        assert!(!returns(&mut old, b"text").await.expect("a frozen connection stays open"));
        assert!(returns(&mut client(&relay).await, b"text").await.expect("it is open"));
        network.restore();
        let mut rest = [0; 1];
        let end = timeout(SILENCE, old.read(&mut rest)).await.expect("a released connection is closed");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }

    #[tokio::test]
    async fn disconnected_network_accepts_and_forwards_nothing() {
        let (network, relay) = echo().await;
        network.disconnect();
        let mut new = client(&relay).await;
        assert!(!returns(&mut new, b"text").await.expect("it is open"));
        network.restore();
        assert!(returns(&mut client(&relay).await, b"text").await.expect("it is open"));
    }

    #[tokio::test]
    async fn batch_freezes_every_connection() {
        let (network, relay) = echo().await;
        let (mut one, mut other) = (client(&relay).await, client(&relay).await);
        for client in [&mut one, &mut other] {
            assert!(returns(client, BATCH).await.expect("it is open"));
        }
        let frozen = async {
            let ((), returned) = tokio::join!(network.freeze_at_batch(), returns(&mut one, BATCH));
            returned
        };
        assert!(!frozen.await.expect("a frozen connection stays open"));
        assert!(!returns(&mut other, b"text").await.expect("a frozen connection stays open"));
    }
}
