//! The check of a pooled connection to PostgreSQL before and after each use.

use std::{
    io,
    sync::Mutex,
    time::{Duration, Instant},
};

use sea_orm::sqlx::{self, Connection as _, PgConnection, Row as _};

use crate::{sync::lock, transaction::unanswered};

/// The time in which a pooled connection answers.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// The connections of this process that were opened before are closed without a check.
static DISCARD_BEFORE: Mutex<Option<Instant>> = Mutex::new(None);

/// Lets no connection that is open now be used again. Connections share a server: if one of them does not answer or has become
/// read-only, the others are probably no better.
pub(crate) fn discard_open_connections() {
    *lock(&DISCARD_BEFORE) = Some(Instant::now());
}

/// Whether no connection that was opened `age` ago may be used.
fn is_suspect(age: Duration) -> bool {
    let discard_before = *lock(&DISCARD_BEFORE);
    discard_before.is_some_and(|discard_before| discard_before.elapsed() < age)
}

/// Decides which connections of a pool are used again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionCheck {
    /// Whether every connection must permit writes.
    pub(crate) writes: bool,
}

impl ConnectionCheck {
    /// Whether a connection may be used, which was opened `age` ago.
    pub(crate) async fn before_use(
        self,
        connection: &mut PgConnection,
        age: Duration,
    ) -> Result<bool, sqlx::Error> {
        if is_suspect(age) {
            return Ok(false);
        }
        self.is_usable(connection).await
    }

    /// Whether a connection may be used again, which was opened `age` ago. A future that was dropped early leaves unsent data on its
    /// connection, at least a ROLLBACK; such a connection is closed.
    pub(crate) async fn after_use(
        self,
        connection: &mut PgConnection,
        age: Duration,
    ) -> Result<bool, sqlx::Error> {
        match (connection.should_flush(), is_suspect(age)) {
            (true, true) => Err(io::Error::other("closing a connection whose server does not answer").into()),
            (true, false) => Ok(false),
            (false, _) => self.is_usable(connection).await,
        }
    }

    /// Whether a connection answers as it must. `false` lets the pool send what is unsent and say goodbye, which would wait for a silent
    /// server; an error closes it at once.
    async fn is_usable(self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let answer = tokio::time::timeout(PING_TIMEOUT, self.permits_use(connection)).await;
        if !matches!(answer, Ok(Ok(true))) {
            discard_open_connections();
        }
        match answer {
            Ok(answer) => Ok(answer.unwrap_or(false)),
            Err(_) => Err(unanswered(PING_TIMEOUT)),
        }
    }

    async fn permits_use(self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        if !self.writes {
            return connection.ping().await.map(|()| true);
        }
        let row = sqlx::raw_sql(SHOW_READ_ONLY).fetch_one(connection).await?;
        Ok(row.try_get::<String, _>(0)? == "off")
    }
}

/// Reports whether the session only reads: its server is a standby, or `default_transaction_read_only` is set.
pub(crate) const SHOW_READ_ONLY: &str = "SHOW transaction_read_only";
