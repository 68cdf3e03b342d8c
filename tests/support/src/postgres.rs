//! A private PostgreSQL server for the tests of one process, and a separate database for each test.
//!
//! The server is started on first use, never as root and never on a port or in a folder that something else uses. It
//! ends with the process, also when that is killed (`watchdog.sh`).

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Lines, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread::sleep,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use tokio::sync::OnceCell;

use crate::{
    connect,
    installation::{find_faketime, find_programs, run_unprivileged},
    migrate,
    panel::{Login, OWNER_ROLE, Panel},
};

/// The page that documents the roles and their GRANTs.
const ROLES: &str = include_str!("../../../docs/operate/roles.md");

/// A free port may be taken by another process before the server has it.
const PORTS_TRIED: usize = 5;
const POLL: Duration = Duration::from_millis(10);
const HOW_TO_INSTALL: &str = "on Debian and Ubuntu: `apt-get install postgresql`; `scripts/test.sh` does it";

static SERVER: OnceLock<Result<Postgres, StartError>> = OnceLock::new();

/// The reason why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The programs are not installed.
    #[error(
        "found no PostgreSQL server (`initdb`, `pg_ctl`, `postgres`) on PATH or in /usr/lib/postgresql; {HOW_TO_INSTALL}"
    )]
    NotInstalled,
    /// The cluster could not be created, or the server did not start on any port.
    #[error("{doing} in {} failed:\n{log}", folder.display())]
    Server {
        /// The step that failed.
        doing: &'static str,
        /// The folder of the server.
        folder: PathBuf,
        /// The output of the programs.
        log: String,
    },
    /// The folder or the watchdog could not be created.
    #[error("preparing the PostgreSQL server of the tests failed: {0}")]
    Io(#[from] io::Error),
}

/// The server of this process.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
    port: u16,
    /// The name of each template: by panel, without and with our migrations.
    templates: [[OnceCell<String>; 2]; 4],
    roles: OnceCell<()>,
    databases_made: AtomicU32,
    /// Databases whose tests have ended, dropped before the next one is made so that the disk stays small.
    finished: Mutex<Vec<String>>,
    /// Its input keeps the server alive; `None` once the server was removed.
    watchdog: Mutex<Option<Watchdog>>,
}

/// The options of a server.
#[derive(Clone, Copy)]
enum Kind<'a> {
    Plain,
    /// The preloaded library that changes its clock.
    WithClock(&'a Path),
    /// The port of the primary, if it is a standby.
    StandbyOf(u16),
}

/// The script that starts the server and removes it.
#[derive(Debug)]
struct Watchdog {
    child: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Postgres {
    /// The server of this process, started at its first use.
    pub fn server() -> &'static Self {
        match SERVER.get_or_init(Self::start) {
            Ok(server) => server,
            Err(error) => panic!("{error}"),
        }
    }

    /// A separate server, for a test that stops it. Unlike on the shared one, confirmed commits survive that.
    pub async fn private() -> &'static Self {
        Self::leak(Self::start()).await
    }

    /// The same, with a clock that [`Postgres::set_clock`] moves.
    pub async fn with_clock() -> &'static Self {
        let Some(library) = find_faketime() else {
            panic!(
                "found no libfaketime; on Debian and Ubuntu: `apt-get install faketime`; `scripts/test.sh` does it"
            );
        };
        Self::leak(Self::start_with(Kind::WithClock(&library))).await
    }

    async fn leak(started: Result<Self, StartError>) -> &'static Self {
        let server = match started {
            Ok(server) => Box::leak(Box::new(server)),
            Err(error) => panic!("{error}"),
        };
        server.run(Login::Admin, "postgres", "ALTER SYSTEM SET synchronous_commit = on").await;
        server.run(Login::Admin, "postgres", "SELECT pg_reload_conf()").await;
        server
    }

    /// A standby of this server: it follows, and accepts no writes until [`Postgres::promote`].
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn standby(&self) -> &'static Self {
        match Self::start_with(Kind::StandbyOf(self.port)) {
            Ok(standby) => Box::leak(Box::new(standby)),
            Err(error) => panic!("{error}"),
        }
    }

    /// Makes a standby a primary.
    pub async fn promote(&self) {
        self.run(Login::Admin, "postgres", "SELECT pg_promote()").await;
    }

    /// A separate server with these lines of configuration.
    pub async fn durable(settings: &[&str]) -> &'static Self {
        let server = Self::private().await;
        for setting in settings {
            server.run(Login::Admin, "postgres", &format!("ALTER SYSTEM SET {setting}")).await;
        }
        if let Err(error) = server.restart() {
            panic!("{error}");
        }
        server
    }

    /// Moves its clock so many seconds away from the true time.
    pub fn set_clock(&self, seconds: i64) {
        write_clock(&self.folder, seconds).expect("a file in a folder of ours is written");
    }

    /// Stops the server as a power failure would, and starts it again.
    ///
    /// # Errors
    /// If it does not come back.
    pub fn restart(&self) -> Result<(), StartError> {
        let pid_file = fs::read_to_string(self.folder.join("data/postmaster.pid"))?;
        let pid = pid_file.lines().next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
        kill_process(pid.expect("a server that runs has a process id"), Signal::QUIT)
            .map_err(io::Error::from)?;
        while self.folder.join("data/postmaster.pid").exists() {
            sleep(POLL);
        }
        let mut watchdog = self.watchdog.lock().unwrap_or_else(PoisonError::into_inner);
        let watchdog = watchdog.as_mut().expect("the server was not taken away");
        for _ in 0..PORTS_TRIED {
            if watchdog.start(self.port)? {
                return Ok(());
            }
        }
        Err(failed("starting the PostgreSQL server again", &self.folder))
    }

    /// Removes a private server.
    pub fn take_away(&self) {
        if let Some(mut watchdog) = self.watchdog.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(watchdog.child.stdin.take());
            // It ends whether or not a process waits for it.
            let _ = watchdog.child.wait();
        }
    }

    /// Enables TLS on the server with this certificate, as PEM.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub async fn serve_tls(&self, certificate: &str, key: &str) -> io::Result<()> {
        let data = self.folder.join("data");
        let owner = fs::metadata(&data)?;
        for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
            let file = data.join(name);
            fs::write(&file, pem)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
            chown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        self.run(Login::Admin, "postgres", "ALTER SYSTEM SET ssl = on").await;
        self.run(Login::Admin, "postgres", "SELECT pg_reload_conf()").await;
        Ok(())
    }

    /// A server on this port of 127.0.0.1 that the caller starts and ends. It trusts every login.
    #[must_use]
    pub fn of_caller(port: u16) -> &'static Self {
        Box::leak(Box::new(Self::elsewhere(PathBuf::new(), port)))
    }

    fn elsewhere(folder: PathBuf, port: u16) -> Self {
        Self {
            folder,
            port,
            templates: Default::default(),
            roles: OnceCell::new(),
            databases_made: AtomicU32::new(0),
            finished: Mutex::default(),
            watchdog: Mutex::new(None),
        }
    }

    /// A database with the panel's schema as the panel leaves it.
    pub async fn database(panel: Panel) -> Database {
        let server = Self::server();
        let name = server.copy(server.bare_template(panel).await).await;
        Database { name, server }
    }

    /// The same as [`Postgres::migrated`] in a database that accepts any bytes as text.
    pub async fn of_any_text(panel: Panel) -> Database {
        let server = Self::server();
        server.roles.get_or_init(|| server.make_roles()).await;
        let name = format!("e2e_{}", server.databases_made.fetch_add(1, Ordering::Relaxed));
        let create = format!(
            "CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C' OWNER {OWNER_ROLE}"
        );
        server.run(Login::Admin, "postgres", &create).await;
        server.run(Login::Owner, &name, panel.schema()).await;
        migrate(&server.url(Login::Owner, &name)).await;
        server.grant(&name).await;
        Database { name, server }
    }

    /// A database with the panel's schema and our migrations on top, and with the GRANTs of [`BILLING_ROLE`](crate::BILLING_ROLE).
    pub async fn migrated(panel: Panel) -> Database {
        Self::server().migrated_database(panel).await
    }

    /// The same on this server.
    pub async fn migrated_database(&'static self, panel: Panel) -> Database {
        let name = self.copy(self.migrated_template(panel).await).await;
        Database { name, server: self }
    }

    /// The folder of the server: its cluster is in `data`, its log in `log`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The port on 127.0.0.1 that the server listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn start() -> Result<Self, StartError> {
        Self::start_with(Kind::Plain)
    }

    fn start_with(kind: Kind<'_>) -> Result<Self, StartError> {
        let programs = find_programs().ok_or(StartError::NotInstalled)?;
        let folder = tempfile::Builder::new().prefix("billing-e2e-").tempdir_in(servers_folder())?;
        let mut watchdog = Command::new("sh");
        watchdog.args(["-c", include_str!("watchdog.sh"), "watchdog"]).arg(programs).arg(folder.path());
        // A separate process group, so that Ctrl-C and a test runner's signals reach the tests alone.
        watchdog.process_group(0).current_dir("/");
        watchdog.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            watchdog.env_remove(name);
        }
        if let Kind::StandbyOf(port) = kind {
            watchdog.arg(port.to_string());
        }
        if let Kind::WithClock(library) = kind {
            write_clock(folder.path(), 0)?;
            watchdog.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", folder.path().join("clock"));
            // The time at every read, and only of the wall clock.
            watchdog.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        run_unprivileged(&mut watchdog, folder.path())?;
        let mut watchdog = watchdog.spawn()?;
        let answers = watchdog.stdout.take().expect("its output is a pipe");
        let mut watchdog = Watchdog { child: watchdog, answers: BufReader::new(answers).lines() };
        let port = start_cluster(&mut watchdog, folder.path())?;
        Ok(Self {
            watchdog: Mutex::new(Some(watchdog)),
            // From here on the watchdog alone removes it, since nothing in this process survives a `kill -9`.
            ..Self::elsewhere(folder.keep(), port)
        })
    }

    async fn bare_template(&self, panel: Panel) -> &str {
        let make = || async {
            let name = self.copy("template0").await;
            self.run(Login::Owner, &name, panel.schema()).await;
            name
        };
        self.templates[panel as usize][0].get_or_init(make).await
    }

    async fn migrated_template(&self, panel: Panel) -> &str {
        let make = || async {
            let name = self.copy(self.bare_template(panel).await).await;
            migrate(&self.url(Login::Owner, &name)).await;
            self.grant(&name).await;
            name
        };
        self.templates[panel as usize][1].get_or_init(make).await
    }

    /// Copies a template and returns the copy's name.
    async fn copy(&self, template: &str) -> String {
        let name = format!("e2e_{}", self.databases_made.fetch_add(1, Ordering::Relaxed));
        let finished = std::mem::take(&mut *self.finished.lock().unwrap_or_else(PoisonError::into_inner));
        let drops = finished.iter().map(|name| format!("DROP DATABASE {name} WITH (FORCE)"));
        let create = format!("CREATE DATABASE {name} TEMPLATE {template} OWNER {OWNER_ROLE}");
        self.roles.get_or_init(|| self.make_roles()).await;
        // One at a time: neither statement may be part of a transaction, and several in one message are.
        for statement in drops.chain([create]) {
            self.run(Login::Admin, "postgres", &statement).await;
        }
        name
    }

    async fn make_roles(&self) {
        self.run(Login::Admin, "postgres", &format!("CREATE ROLE {OWNER_ROLE} LOGIN")).await;
        self.run(Login::Admin, "postgres", &operations("create")).await;
    }

    async fn grant(&self, database: &str) {
        for section in ["panel", "billing", "policies"] {
            self.run(Login::Owner, database, &operations(section)).await;
        }
    }

    async fn run(&self, login: Login, database: &str, sql: &str) {
        let connection = connect(&self.url(login, database)).await;
        if let Err(error) = connection.execute_unprepared(sql).await {
            panic!("{error}, in:\n{sql}");
        }
        connection.close().await.expect("a connection that answers can be closed");
    }

    fn url(&self, login: Login, database: &str) -> String {
        format!("postgres://{}@127.0.0.1:{}/{database}", login.role(), self.port)
    }
}

/// The folder of the servers. scripts/test.sh chooses one in memory, since each test makes a database of 300 files; a benchmark needs the
/// disk.
fn servers_folder() -> PathBuf {
    env::var_os("BILLING_TEST_SERVERS").map_or_else(env::temp_dir, PathBuf::from)
}

/// The statements that the operator's manual marks with this name.
///
/// # Panics
/// If it marks none.
#[must_use]
pub fn operations(name: &str) -> String {
    let marked = ROLES.split_once(&format!("<!-- sql: {name} -->\n```sql\n"));
    let sql = marked.and_then(|(_, rest)| rest.split_once("\n```")).map(|(sql, _)| sql.to_owned());
    sql.unwrap_or_else(|| panic!("docs/operate/roles.md marks no statements as `{name}`"))
}

/// A database of one test. Dropped some time after the test has dropped this.
#[derive(Debug)]
pub struct Database {
    name: String,
    server: &'static Postgres,
}

impl Database {
    /// The URL under which a login reaches it.
    #[must_use]
    pub fn url(&self, login: Login) -> String {
        self.server.url(login, &self.name)
    }

    /// The same database on a standby of its server.
    pub(crate) fn on(&self, standby: &'static Postgres) -> Self {
        Self { name: self.name.clone(), server: standby }
    }

    pub(crate) fn server_port(&self) -> u16 {
        self.server.port
    }

    /// A small pool of connections to it.
    pub async fn connect(&self, login: Login) -> DatabaseConnection {
        connect(&self.url(login)).await
    }

    /// Grants [`BILLING_ROLE`](crate::BILLING_ROLE) what it needs of the tables that exist by now. Only a test that migrates on its own
    /// has to call it.
    pub async fn grant(&self) {
        self.server.grant(&self.name).await;
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let mut finished = self.server.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.push(std::mem::take(&mut self.name));
    }
}

impl Watchdog {
    fn receives(&mut self, word: &str) -> io::Result<bool> {
        Ok(self.answers.next().transpose()?.as_deref() == Some(word))
    }

    /// Whether the server started on this port.
    fn start(&mut self, port: u16) -> io::Result<bool> {
        writeln!(self.child.stdin.as_ref().expect("its input is a pipe"), "{port}")?;
        self.receives("up")
    }
}

/// Waits until the watchdog has created and started the cluster, and returns the port.
fn start_cluster(watchdog: &mut Watchdog, folder: &Path) -> Result<u16, StartError> {
    if !watchdog.receives("made")? {
        return Err(failed("making a PostgreSQL cluster", folder));
    }
    for _ in 0..PORTS_TRIED {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        if watchdog.start(port)? {
            return Ok(port);
        }
    }
    Err(failed("starting a PostgreSQL server", folder))
}

fn failed(doing: &'static str, folder: &Path) -> StartError {
    let log = fs::read_to_string(folder.join("log")).unwrap_or_else(|error| {
        format!("there is no log ({error}); may the user that runs PostgreSQL enter this folder?")
    });
    StartError::Server { doing, folder: folder.to_owned(), log }
}

/// Replaced atomically, because it is read at every read of the clock.
fn write_clock(folder: &Path, seconds: i64) -> io::Result<()> {
    fs::write(folder.join("clock.new"), format!("{seconds:+}"))?;
    fs::rename(folder.join("clock.new"), folder.join("clock"))
}
