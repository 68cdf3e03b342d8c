//! For an application that bills by itself when no daemon does: whether it is its turn.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, DbErr};

use crate::{db::statement, fence};

/// How long after the last heartbeat a panel bills by itself.
pub const PANELS_PATIENCE: Duration = Duration::from_mins(90);

/// Whether the application may bill now: no daemon has told for `threshold` that billing works. That is the rule by which the
/// panel's own biller pauses, with a threshold of [`PANELS_PATIENCE`]; ask before each pass, not once.
///
/// The newest `heartbeat_at` of any row of `billing_daemon_status` counts, whatever the row's `status`, and its age is told by the
/// database's clock. Older than `threshold`, or no heartbeat at all: `true`. A daemon that stops cleanly takes its heartbeat
/// back, so the next question is answered with `true`.
///
/// Nothing is written, and the connection is left as it was. There is no error: where the question cannot be asked, because the
/// table is missing or the database does not answer, the answer is `true`, as the panel's is - unless the fence is up
/// ([`fence::install`](crate::fence::install)), which knows better than a heartbeat who bills; then it is `false`.
///
/// ```no_run
/// # async fn pass(db: sea_orm::DatabaseConnection) {
/// if billing_jobs::may_bill(&db, billing_jobs::PANELS_PATIENCE).await {
///     // Every daemon is gone, or cannot bill: one pass of our own.
/// }
/// # }
/// ```
pub async fn may_bill(db: &impl ConnectionTrait, threshold: Duration) -> bool {
    match since_heartbeat(db).await {
        Ok(since) => since.is_none_or(|since| since >= threshold),
        Err(_) => !fence::is_up(db).await.unwrap_or(false),
    }
}

/// How long ago the newest heartbeat was; nothing if it lies in the future.
async fn since_heartbeat(db: &impl ConnectionTrait) -> Result<Option<Duration>, DbErr> {
    let sql = match db.get_database_backend() {
        DbBackend::Sqlite => {
            "SELECT CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)
                    - max(CAST(unixepoch(heartbeat_at, 'subsec') * 1000 AS INTEGER)) AS age_ms
               FROM billing_daemon_status"
        }
        _ => {
            "SELECT (extract(epoch FROM now() - max(heartbeat_at)) * 1000)::bigint AS age_ms
               FROM billing_daemon_status"
        }
    };
    let row = db.query_one_raw(statement(db, sql, [])).await?;
    let age_ms: Option<i64> = row.map_or(Ok(None), |row| row.try_get("", "age_ms"))?;
    Ok(age_ms.map(|ms| Duration::from_millis(ms.max(0).unsigned_abs())))
}
