//! The database of a campaign, and how its daemons reach it.

use std::net::SocketAddr;

use sea_orm::DbBackend;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{Fault, Proxy};
use crate::Engine;
use billing_test_support::{Db, Login, Panel, Postgres};

/// The most connections that the daemons' role may have.
pub(super) const ROLE_CONNECTIONS: u32 = 30;

/// A database with the campaign's own tables in it.
pub(crate) struct Server {
    pub(crate) db: Db,
    /// The server of the campaign and the proxy in front of it; none on SQLite, and if other code serves the database.
    pub(crate) postgres: Option<(&'static Postgres, Proxy)>,
    /// Whether it has no other client.
    is_own: bool,
    /// Held while something must not be disturbed: see where it is taken.
    pub(super) calm: Mutex<()>,
    /// Whose balance the panel has read and not yet written.
    read_by_panel: std::sync::Mutex<Option<Uuid>>,
}

impl Server {
    /// A new database, on a separate server if anything is to happen to that.
    pub(crate) async fn start(engine: Engine, faults: &[Fault]) -> Self {
        let is_own = faults.iter().any(|fault| fault.needs_own_server());
        let server = match engine {
            Engine::Sqlite => Self::of(Db::sqlite().await),
            Engine::Postgres => {
                let postgres = if is_own { Postgres::private().await } else { Postgres::server() };
                let db = Db::on_server(postgres, Panel::G3, Login::Billing).await;
                let proxy = Proxy::start(postgres.port()).await.expect("a port is free");
                let mut server = Self::of(db);
                server.postgres = Some((postgres, proxy));
                server.is_own = is_own;
                server
            }
        };
        server.add_tables().await;
        if engine == Engine::Postgres && is_own {
            let limit = format!("ALTER ROLE billing_run CONNECTION LIMIT {ROLE_CONNECTIONS}");
            server.db.execute(&limit).await;
        }
        server
    }

    /// Adds the campaign's own tables.
    pub(crate) async fn add_tables(&self) {
        self.db
            .execute(
                "CREATE TABLE campaign_clock (now_micros bigint NOT NULL);
                 CREATE TABLE campaign_marks (id text PRIMARY KEY)",
            )
            .await;
        if self.db.backend() == DbBackend::Postgres {
            self.db.execute("GRANT SELECT ON campaign_clock TO billing_run").await;
        }
    }

    /// A database that other code serves.
    pub(crate) fn of(db: Db) -> Self {
        Self {
            db,
            postgres: None,
            is_own: false,
            calm: Mutex::default(),
            read_by_panel: std::sync::Mutex::default(),
        }
    }

    /// The panel has read, or written, a balance of this organization.
    pub(super) fn panel_reads(&self, organization: Option<Uuid>) {
        *self.read_by_panel.lock().expect("no holder of the lock panics") = organization;
    }

    /// Whose balance the panel has read and not yet written.
    pub(super) fn read_by_panel(&self) -> Option<Uuid> {
        *self.read_by_panel.lock().expect("no holder of the lock panics")
    }

    /// Under which the daemons reach it: through the proxy, if there is one.
    pub(crate) fn url(&self) -> String {
        match &self.postgres {
            None => self.db.url.clone(),
            Some((postgres, proxy)) => {
                let direct = SocketAddr::from(([127, 0, 0, 1], postgres.port())).to_string();
                let proxied = SocketAddr::from(([127, 0, 0, 1], proxy.port())).to_string();
                self.db.url.replace(&direct, &proxied)
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let (Some((postgres, _)), true) = (&self.postgres, self.is_own) {
            postgres.take_away();
        }
    }
}
