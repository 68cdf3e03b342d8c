//! A service manager for tests: like systemd, it listens on a datagram socket and has a watchdog.

use std::{collections::VecDeque, io, path::PathBuf, time::Duration};

use tempfile::TempDir;
use tokio::{
    net::UnixDatagram,
    time::{Instant, timeout, timeout_at},
};

use crate::Program;

/// The time limit of everything that a test waits for. Only a failure takes that long.
const TIMEOUT: Duration = Duration::from_mins(1);

/// The kind of socket that the manager listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// On a socket in a folder.
    Path,
    /// In Linux's abstract namespace.
    Abstract,
}

/// A service manager, and the notifications it received.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    name: String,
    received: VecDeque<String>,
    _folder: TempDir,
}

impl Manager {
    /// Starts one that listens.
    #[must_use]
    pub fn listen(at: At) -> Self {
        let folder = tempfile::Builder::new().prefix("billing-e2e-").tempdir().expect("a folder is made");
        let path: PathBuf = folder.path().join("notify");
        let (name, socket) = match at {
            At::Path => (path.display().to_string(), UnixDatagram::bind(&path)),
            // The folder's name is unique.
            At::Abstract => (format!("@{}", path.display()), abstract_socket(&path.display().to_string())),
        };
        Self {
            socket: socket.expect("a socket of ours is bound"),
            name,
            received: VecDeque::new(),
            _folder: folder,
        }
    }

    /// The program, so that it notifies this service manager.
    #[must_use]
    pub fn manages(&self, program: Program) -> Program {
        program.env("NOTIFY_SOCKET", &self.name)
    }

    /// Waits for the next line with this beginning and returns the rest of it; other lines are dropped.
    pub async fn wait_for(&mut self, beginning: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        let mut passed = Vec::new();
        loop {
            while let Some(line) = self.received.pop_front() {
                if let Some(rest) = line.strip_prefix(beginning) {
                    return rest.to_owned();
                }
                passed.push(line);
            }
            assert!(
                timeout_at(deadline, self.receive()).await.is_ok(),
                "waited for {beginning} after {passed:?}"
            );
        }
    }

    /// Acts as systemd's watchdog: returns once it was not fed for this long.
    pub async fn starved(&mut self, silence: Duration) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.received.clear();
            if timeout(silence, self.fed()).await.is_err() {
                return;
            }
            assert!(Instant::now() < deadline, "the watchdog is fed on and on");
        }
    }

    async fn fed(&mut self) {
        while !self.received.iter().any(|line| line == "WATCHDOG=1") {
            self.receive().await;
        }
    }

    async fn receive(&mut self) {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).await.expect("a socket of ours can be read");
        let text = std::str::from_utf8(&buffer[..length]).expect("messages are text");
        self.received.extend(text.lines().map(str::to_owned));
    }
}

fn abstract_socket(name: &str) -> io::Result<UnixDatagram> {
    use std::os::{linux::net::SocketAddrExt as _, unix::net};
    let socket = net::UnixDatagram::bind_addr(&net::SocketAddr::from_abstract_name(name)?)?;
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}
