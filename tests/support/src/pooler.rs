//! A private PgBouncer in transaction mode in front of the private PostgreSQL server.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{BILLING_ROLE, Db, Login, OWNER_ROLE, Postgres, run_unprivileged};

/// How long it may take to listen. Only a failure takes that long.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Gives each transaction any of its few servers that is free. Stopped when dropped.
#[derive(Debug)]
pub struct Pooler {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Pooler {
    /// Starts one with this many servers for each database and login.
    #[must_use]
    pub fn start(servers: u32) -> Self {
        Self::start_before(Postgres::server().port(), servers)
    }

    /// Starts one before the server on this port of 127.0.0.1, which may be missing.
    #[must_use]
    pub fn start_before(server_port: u16, servers: u32) -> Self {
        let folder = tempfile::Builder::new().prefix("billing-e2e-").tempdir().expect("a folder is made");
        let port = free_port();
        let users: String =
            ["postgres", OWNER_ROLE, BILLING_ROLE].map(|user| format!("\"{user}\" \"\"\n")).concat();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {users_file}\npool_mode = transaction\n\
             default_pool_size = {servers}\nmax_client_conn = 200\n",
            users_file = folder.path().join("users").display(),
        );
        fs::write(folder.path().join("users"), users).expect("a file in a folder of ours is written");
        fs::write(folder.path().join("pgbouncer.ini"), settings)
            .expect("a file in a folder of ours is written");
        let mut command = Command::new("pgbouncer");
        command.arg("-q").arg(folder.path().join("pgbouncer.ini")).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        run_unprivileged(&mut command, folder.path()).expect("a folder of ours");
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("pgbouncer: {error}; install the package `pgbouncer`"));
        let pooler = Self { child, port, _folder: folder };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < TIMEOUT, "pgbouncer does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        pooler
    }

    /// The port on 127.0.0.1 that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL under which a login reaches a database through it.
    #[must_use]
    pub fn url(&self, db: &Db, login: Login) -> String {
        let direct = format!("127.0.0.1:{}", Postgres::server().port());
        db.url_for(login).replace(&direct, &format!("127.0.0.1:{}", self.port))
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    listener.local_addr().expect("a listener has an address").port()
}
