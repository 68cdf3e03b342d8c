//! One interface to every kind of database, so that a check is written once and runs on all of them.

use std::{path::Path, time::Duration};

use sea_orm::{
    ConnectOptions, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr,
    SqliteTransactionMode, TransactionOptions, TransactionTrait as _,
};

use crate::{Database, Login, Panel, Postgres, Sqlite};

/// Two of these for each test that runs at once stay below the server's limit, also on a large host.
const POOL_SIZE: u32 = 5;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// A migrated database, its kind, and connections that bypass the daemon.
#[derive(Debug)]
pub struct Db {
    /// The daemon's URL.
    pub url: String,
    /// The panel's generation: [`Panel::Empty`] if our migrations created the tables.
    pub panel: Panel,
    admin: DatabaseConnection,
    place: Place,
}

/// Keeps the database for as long as the test runs.
#[derive(Debug)]
enum Place {
    Sqlite(#[expect(dead_code, reason = "held for its drop")] Sqlite),
    Postgres(Database),
}

impl Db {
    /// An SQLite database with our own tables.
    pub async fn sqlite() -> Self {
        Self::in_file(Sqlite::migrated().await).await
    }

    /// The same in this folder.
    pub async fn sqlite_in(place: &Path) -> Self {
        Self::in_file(Sqlite::migrated_in(place).await).await
    }

    async fn in_file(file: Sqlite) -> Self {
        let admin = file.connect().await;
        Self { url: file.url(), panel: Panel::Empty, admin, place: Place::Sqlite(file) }
    }

    /// A PostgreSQL database with our own tables, reached as their owner.
    pub async fn postgres() -> Self {
        Self::with_panel(Panel::Empty, Login::Owner).await
    }

    /// Generation 1 of the panel, reached as the owner of its tables.
    pub async fn g1_owner() -> Self {
        Self::with_panel(Panel::G1, Login::Owner).await
    }

    /// Generation 1 of the panel, reached as the daemon's own role.
    pub async fn g1_role() -> Self {
        Self::with_panel(Panel::G1, Login::Billing).await
    }

    /// Generation 2 of the panel, reached as the owner of its tables.
    pub async fn g2_owner() -> Self {
        Self::with_panel(Panel::G2, Login::Owner).await
    }

    /// Generation 2 of the panel, reached as the daemon's own role.
    pub async fn g2_role() -> Self {
        Self::with_panel(Panel::G2, Login::Billing).await
    }

    /// Generation 3 of the panel, reached as the owner of its tables.
    pub async fn g3_owner() -> Self {
        Self::with_panel(Panel::G3, Login::Owner).await
    }

    /// Generation 3 of the panel, reached as the daemon's own role.
    pub async fn g3_role() -> Self {
        Self::with_panel(Panel::G3, Login::Billing).await
    }

    /// A PostgreSQL database with the tables of a panel, reached by the given login.
    pub async fn with_panel(panel: Panel, login: Login) -> Self {
        Self::of(Postgres::migrated(panel).await, panel, login).await
    }

    /// A PostgreSQL database that accepts any bytes as text, with our own tables, reached as their owner.
    pub async fn any_text() -> Self {
        Self::of(Postgres::of_any_text(Panel::Empty).await, Panel::Empty, Login::Owner).await
    }

    /// The same on a separate server.
    pub async fn on_server(server: &'static Postgres, panel: Panel, login: Login) -> Self {
        Self::of(server.migrated_database(panel).await, panel, login).await
    }

    /// The same database on a standby of its server.
    ///
    /// # Panics
    /// On SQLite.
    pub async fn on_standby(&self, standby: &'static Postgres) -> Self {
        let Place::Postgres(database) = &self.place else { panic!("SQLite has no standby") };
        let mut replica = Self::of(database.on(standby), self.panel, Login::Billing).await;
        let ports = [database.server_port(), standby.port()].map(|port| format!(":{port}/"));
        replica.url = self.url.replace(&ports[0], &ports[1]);
        replica
    }

    async fn of(database: Database, panel: Panel, login: Login) -> Self {
        let admin = database.connect(Login::Admin).await;
        Self { url: database.url(login), panel, admin, place: Place::Postgres(database) }
    }

    /// Connects as the daemon does: under row-level security, if the login is bound by it.
    pub async fn connect(&self) -> DatabaseConnection {
        connect(&self.url).await
    }

    /// Connects without any restriction by grants or policies.
    #[must_use]
    pub fn admin(&self) -> &DatabaseConnection {
        &self.admin
    }

    /// The URL for another login. The same one on SQLite, which has no logins.
    #[must_use]
    pub fn url_for(&self, login: Login) -> String {
        match &self.place {
            Place::Sqlite(_) => self.url.clone(),
            Place::Postgres(database) => database.url(login),
        }
    }

    /// Runs statements past every grant and policy, in the dialect of this database.
    pub async fn execute(&self, sql: &str) {
        if let Err(error) = self.admin.execute_unprepared(sql).await {
            panic!("{error}, in:\n{sql}");
        }
    }

    /// Begins a transaction past every grant and policy. On SQLite it is the only writer from its beginning on.
    ///
    /// # Errors
    /// If the database does not answer, or rejects writes.
    pub async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        let sqlite_transaction_mode =
            (self.backend() == DbBackend::Sqlite).then_some(SqliteTransactionMode::Immediate);
        let options = TransactionOptions { sqlite_transaction_mode, ..Default::default() };
        self.admin.begin_with_options(options).await
    }

    /// Its SQL dialect.
    #[must_use]
    pub fn backend(&self) -> DbBackend {
        self.admin.get_database_backend()
    }

    /// Whether instances and plans have the backup columns.
    #[must_use]
    pub fn has_backups(&self) -> bool {
        self.panel != Panel::G1
    }

    /// The smallest amount that a wallet can hold, in ten-thousandths: a cent, or one of these.
    #[must_use]
    pub fn wallet_unit(&self) -> i64 {
        match self.panel {
            Panel::G1 | Panel::G2 => 100,
            Panel::G3 | Panel::Empty => 1,
        }
    }
}

/// A small pool of connections, silent in the log.
pub async fn connect(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(POOL_SIZE).acquire_timeout(ACQUIRE_TIMEOUT).sqlx_logging(false);
    // A transaction of ours makes its connection forget prepared statements: see `billing_store::begin`.
    options.map_sqlx_postgres_opts(|options| options.statement_cache_capacity(0));
    // Boxed, or the futures of the tests nest deeper than the compiler follows.
    match Box::pin(sea_orm::Database::connect(options)).await {
        Ok(connection) => connection,
        Err(error) => panic!("connecting to {url} failed: {error}"),
    }
}

/// Brings a database to our newest schema.
pub async fn migrate(url: &str) {
    let connection = connect(url).await;
    if let Err(error) = Box::pin(migration::up(&connection, None)).await {
        panic!("migrating {url} failed: {error}");
    }
    connection.close().await.expect("a connection that answers can be closed");
}

/// Creates a test of one check for each named variant: `check::sqlite`, `check::g3_role`. The macros below name them.
#[doc(hidden)]
#[macro_export]
macro_rules! on_variants {
    ($check:ident: $($variant:ident),+) => {
        mod $check {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $variant() {
                    super::$check(&$crate::Db::$variant().await).await;
                }
            )+
        }
    };
}

/// Runs each named check (an `async fn(&Db)` of the same module) on every kind of database there is.
#[macro_export]
macro_rules! on_every_database {
    ($($check:ident),+ $(,)?) => {$(
        $crate::on_variants!(
            $check: sqlite, postgres, g1_owner, g1_role, g2_owner, g2_role, g3_owner, g3_role
        );
    )+};
}

/// Runs each named check (an `async fn(&Db)` of the same module) on SQLite and on PostgreSQL, with our own tables.
#[macro_export]
macro_rules! on_every_engine {
    ($($check:ident),+ $(,)?) => {$(
        $crate::on_variants!($check: sqlite, postgres);
    )+};
}

/// Runs each named check (an `async fn(&Db)` of the same module) on the panel's tables of each generation, as their
/// owner and as the daemon's own role.
#[macro_export]
macro_rules! on_every_panel {
    ($($check:ident),+ $(,)?) => {$(
        $crate::on_variants!($check: g1_owner, g1_role, g2_owner, g2_role, g3_owner, g3_role);
    )+};
}
