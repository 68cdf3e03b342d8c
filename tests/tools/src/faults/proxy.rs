//! A proxy in front of PostgreSQL that drops connections or the response to a COMMIT on request. It also counts how
//! many times a client waited for a response.
//!
//! It understands just enough of the protocol: where a message begins and ends, and what a COMMIT and a
//! `ReadyForQuery` look like.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// The code of a client that requests encryption before anything else.
const SSL_REQUEST: i32 = 80_877_103;
/// What distinguishes a transaction that charges from others.
pub(crate) const BATCH: &[u8] = b"INSERT INTO billing_batches";

/// A proxy that closes all its connections when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    /// The number of responses to a COMMIT that are still to be dropped,
    to_lose: AtomicU64,
    /// and of those to the COMMIT of a batch of charges.
    batches_to_lose: AtomicU64,
    lost: AtomicU64,
    cuts: AtomicU64,
    /// What began each round trip, once they are requested.
    trips: Mutex<Option<Vec<String>>>,
    /// Each change closes every connection that was open before it.
    cut: watch::Sender<u64>,
}

impl Proxy {
    /// A proxy on a separate port for the server on this port of this host.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start(server: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server: (Ipv4Addr::LOCALHOST, server).into(),
            to_lose: AtomicU64::new(0),
            batches_to_lose: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            trips: Mutex::default(),
            cut: watch::Sender::new(0),
        });
        let listening = Arc::clone(&shared);
        let listener = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&listening);
                tokio::spawn(async move {
                    let mut cut = shared.cut.subscribe();
                    tokio::select! {
                        // A connection ends; its client detects that.
                        _ = connect(client, &shared) => {}
                        _ = cut.changed() => { shared.cuts.fetch_add(1, Ordering::Relaxed); }
                    }
                });
            }
        });
        Ok(Self { address, shared, listener })
    }

    /// The port that it listens on, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Drops the responses to this many more COMMITs: each is forwarded and executed, then the connection is closed.
    pub fn lose_commits(&self, count: u64) {
        self.shared.to_lose.fetch_add(count, Ordering::Relaxed);
    }

    /// The same for this many COMMITs of batches of charges.
    pub fn lose_batches(&self, count: u64) {
        self.shared.batches_to_lose.fetch_add(count, Ordering::Relaxed);
    }

    /// Drops no further response.
    pub fn relent(&self) {
        self.shared.to_lose.store(0, Ordering::Relaxed);
        self.shared.batches_to_lose.store(0, Ordering::Relaxed);
    }

    /// The number of dropped responses.
    #[must_use]
    pub fn lost_commits(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Closes every open connection.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|cuts| *cuts += 1);
    }

    /// The number of closed connections.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Relaxed)
    }

    /// What began each round trip since the last call, in order: the text of a query or of a statement to be
    /// prepared, `connect`, or the type of a message without a text. What is sent before the server has answered is part of one.
    #[must_use]
    pub fn round_trips(&self) -> Vec<String> {
        lock(&self.shared.trips).replace(Vec::new()).unwrap_or_default()
    }
}

impl Shared {
    fn begins_trip(&self, what: impl FnOnce() -> String) {
        if let Some(trips) = &mut *lock(&self.trips) {
            trips.push(what());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

/// The state of one connection.
#[derive(Default)]
struct State {
    /// The next response is to be dropped.
    losing: AtomicBool,
    /// The server waits for its client.
    ready: AtomicBool,
}

async fn connect(client: TcpStream, shared: &Shared) -> io::Result<()> {
    let server = TcpStream::connect(shared.server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut client, mut to_client) = client.into_split();
    let (mut server, mut to_server) = server.into_split();
    // What comes before the first typed message has no type.
    loop {
        let first = untyped(&mut client).await?;
        to_server.write_all(&first).await?;
        if first.get(4..8) != Some(&SSL_REQUEST.to_be_bytes()) {
            break;
        }
        let answer = server.read_u8().await?;
        to_client.write_u8(answer).await?;
    }
    shared.begins_trip(|| "connect".to_owned());
    let state = State::default();
    tokio::select! {
        ended = forward_requests(&mut client, &mut to_server, shared, &state) => ended,
        ended = answer(&mut server, &mut to_client, shared, &state) => ended,
    }
}

async fn forward_requests(
    client: &mut OwnedReadHalf,
    server: &mut OwnedWriteHalf,
    shared: &Shared,
    state: &State,
) -> io::Result<()> {
    let mut batch = false;
    loop {
        let message = typed(client).await?;
        if state.ready.swap(false, Ordering::SeqCst) && message.first() != Some(&b'X') {
            shared.begins_trip(|| beginning(&message));
        }
        batch |= message.windows(BATCH.len()).any(|window| window == BATCH);
        if is_commit(&message) {
            if take(&shared.to_lose) || (batch && take(&shared.batches_to_lose)) {
                state.losing.store(true, Ordering::SeqCst);
            }
            batch = false;
        }
        server.write_all(&message).await?;
    }
}

async fn answer(
    server: &mut OwnedReadHalf,
    client: &mut OwnedWriteHalf,
    shared: &Shared,
    state: &State,
) -> io::Result<()> {
    loop {
        let message = typed(server).await?;
        if state.losing.load(Ordering::SeqCst) {
            // The server is done with the COMMIT when it is ready for more: its response is dropped.
            if message.first() == Some(&b'Z') {
                shared.lost.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            continue;
        }
        if message.first() == Some(&b'Z') {
            state.ready.store(true, Ordering::SeqCst);
        }
        client.write_all(&message).await?;
    }
}

fn take(left: &AtomicU64) -> bool {
    let one = |left: u64| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one).is_ok()
}

/// A query, or a statement to be prepared, that is a COMMIT.
fn is_commit(message: &[u8]) -> bool {
    text(message).is_some_and(|text| text.len() >= 6 && text[..6].eq_ignore_ascii_case(b"COMMIT"))
}

/// The text of a query (`Q`), or of a statement to be prepared (`P`: its name, then its text).
fn text(message: &[u8]) -> Option<&[u8]> {
    match message.split_first() {
        Some((b'Q', rest)) => rest.get(4..),
        Some((b'P', rest)) => rest.get(4..).and_then(|rest| rest.splitn(2, |byte| *byte == 0).nth(1)),
        _ => None,
    }
}

/// The text of a message, up to its end, or its type.
fn beginning(message: &[u8]) -> String {
    let text = text(message).and_then(|text| text.split(|byte| *byte == 0).next());
    String::from_utf8_lossy(text.unwrap_or(&message[..message.len().min(1)])).into_owned()
}

/// A length, itself included, and what it counts.
async fn untyped(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let length = from.read_u32().await?;
    let mut message = length.to_be_bytes().to_vec();
    append(from, &mut message, length).await?;
    Ok(message)
}

/// A type, a length that counts itself, and the rest.
async fn typed(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let kind = from.read_u8().await?;
    let length = from.read_u32().await?;
    let mut message = vec![kind];
    message.extend(length.to_be_bytes());
    append(from, &mut message, length).await?;
    Ok(message)
}

async fn append(from: &mut OwnedReadHalf, message: &mut Vec<u8>, length: u32) -> io::Result<()> {
    let rest = length.checked_sub(4).ok_or(io::ErrorKind::InvalidData)?;
    let begun = message.len();
    message.resize(begun + rest as usize, 0);
    from.read_exact(&mut message[begun..]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_is_recognized() {
        let rows: [(&[u8], bool); 6] = [
            (b"Q\0\0\0\x0bCOMMIT\0", true),
            (b"Q\0\0\0\x0bcommit\0", true),
            (b"P\0\0\0\x0es1\0COMMIT\0\0\0", true),
            (b"P\0\0\0\x0cCOMMIT\0SELECT\0\0\0", false),
            (b"Q\0\0\0\x0bROLLBACK\0", false),
            (b"X\0\0\0\x04", false),
        ];
        for (message, expected) in rows {
            assert_eq!(is_commit(message), expected, "{}", String::from_utf8_lossy(message));
        }
    }
}
