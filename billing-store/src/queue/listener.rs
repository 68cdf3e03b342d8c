//! Notifications of PostgreSQL that jobs were added by any process. They only wake the worker earlier than its next poll: behind a pooler
//! in transaction mode none arrives, and while the server cannot be reached none is missed that a poll would not find.

use std::time::Duration;

use sea_orm::{
    DbBackend,
    sqlx::{self, PgPool, postgres::PgListener},
};
use tracing::info;

use crate::database::{Database, Pool};

/// The channel of the notifications. They are those of one database; other schemas in it wake the worker as well.
pub(super) const CHANNEL: &str = "scheduler_queue";
/// The time between two attempts to listen.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// A connection without a notification for this time is checked: it may be lost without a sign.
const CHECK_INTERVAL: Duration = Duration::from_mins(5);
/// The longest wait for the answer to this check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls `added` for notifications until it is dropped, and once after each connection, because earlier ones were missed.
pub(super) async fn listen(database: &Database, added: &(dyn Fn() + Send + Sync)) {
    if database.url().backend() == DbBackend::Sqlite {
        return std::future::pending().await;
    }
    let mut is_reported = false;
    loop {
        let ended = match database.connect(Pool::Single).await {
            Ok(db) => {
                receive(db.get_postgres_connection_pool(), added).await.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = ended
            && !std::mem::replace(&mut is_reported, true)
        {
            info!("cannot listen for queued jobs of other processes: {error}; polls find them");
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Calls `added` for notifications until the connection is lost.
async fn receive(pool: &PgPool, added: &(dyn Fn() + Send + Sync)) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    added();
    loop {
        let Ok(received) = tokio::time::timeout(CHECK_INTERVAL, listener.try_recv()).await else {
            let check = sqlx::raw_sql("SELECT 1").execute(&mut listener);
            let Ok(answer) = tokio::time::timeout(CHECK_TIMEOUT, check).await else { return Ok(()) };
            answer?;
            continue;
        };
        if received?.is_none() {
            return Ok(());
        }
        added();
    }
}
