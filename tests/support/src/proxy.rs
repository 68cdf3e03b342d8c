//! A TCP proxy before the private PostgreSQL server, whose connections can be frozen.

use std::net::Ipv4Addr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::{Db, Login, Postgres};

/// A proxy that can do to its connections what a lost NAT entry, a stopped proxy or a host without power does: neither end receives
/// anything any more, not even the end of the connection. New connections work.
#[derive(Debug)]
pub struct FreezingProxy {
    port: u16,
    /// How often the connections were frozen.
    frozen: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl FreezingProxy {
    /// Listens on a free port of this host.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let port = listener.local_addr().expect("a listener has an address").port();
        let (frozen, freezes) = watch::channel(0);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, freezes.clone()));
            }
        });
        Self { port, frozen, task }
    }

    /// The URL under which a login reaches a database through it.
    #[must_use]
    pub fn url(&self, db: &Db, login: Login) -> String {
        let direct = format!("127.0.0.1:{}", Postgres::server().port());
        db.url_for(login).replace(&direct, &format!("127.0.0.1:{}", self.port))
    }

    /// Freezes every connection that is open now.
    pub fn freeze(&self) {
        self.frozen.send_modify(|frozen| *frozen += 1);
    }
}

impl Drop for FreezingProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(mut client: TcpStream, mut freezes: watch::Receiver<u64>) {
    let opened_at = *freezes.borrow();
    let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, Postgres::server().port())).await else {
        return;
    };
    let is_frozen = tokio::select! {
        // The connection ended.
        _ = copy_bidirectional(&mut client, &mut server) => false,
        frozen = freezes.wait_for(|frozen| *frozen > opened_at) => frozen.is_ok(),
    };
    if is_frozen {
        // Both ends stay open.
        std::future::pending::<()>().await;
    }
}
