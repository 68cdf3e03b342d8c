//! For an application that bills when no daemon does: whether it may bill now.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, DbErr};

use crate::{BILLING_JOB, panel_guard};
use billing_store::statement;

/// How long after the last heartbeat the panel resumes its own billing.
pub const PANEL_TAKEOVER_AFTER: Duration = Duration::from_mins(90);

/// Whether the application may bill now: no daemon has reported for `threshold` that billing works. The panel's own biller pauses by
/// the same rule, with a threshold of [`PANEL_TAKEOVER_AFTER`]. Call it before each run, not once.
///
/// The newest `heartbeat_at` of any row of `billing_daemon_status` counts, whatever the row's `status`; the database's clock
/// determines its age. Older than `threshold`, or no heartbeat at all: `true`. A daemon that stops cleanly takes its heartbeat
/// back, so the next call returns `true`.
///
/// Where the panel guard is installed ([`panel_guard::install`](crate::panel_guard::install)), it refuses hourly debits until billing has not worked for
/// `hand-back-after`. The answer is `false` until then, also if the last heartbeat is older.
///
/// Nothing is written, and the connection is left as it was. There is no error: if the query fails, because the table is missing or
/// the database is unreachable, the answer is `true`, as the panel's is - unless the panel guard is effective; then it is `false`.
///
/// ```no_run
/// # async fn pass(db: sea_orm::DatabaseConnection) {
/// if billing_jobs::may_bill(&db, billing_jobs::PANEL_TAKEOVER_AFTER).await {
///     // Every daemon is gone, or cannot bill: the application bills once.
/// }
/// # }
/// ```
pub async fn may_bill(db: &impl ConnectionTrait, threshold: Duration) -> bool {
    match since_heartbeat(db).await {
        Ok(Some(since)) if since < threshold => false,
        Ok(_) => {
            !panel_guard::is_installed(db).await.unwrap_or(false)
                || has_handed_back(db).await.unwrap_or(false)
        }
        Err(_) => !panel_guard::is_installed(db).await.unwrap_or(false),
    }
}

/// Whether the panel guard lets debits of others through. It exists on PostgreSQL alone.
async fn has_handed_back(db: &impl ConnectionTrait) -> Result<bool, DbErr> {
    let sql = "SELECT halt IS NULL
                      AND coalesce(last_success_at <= now() - hand_back_after_seconds * interval '1 second', true) AS handed_back
                 FROM scheduler_fencing WHERE job = $1";
    let row = db.query_one_raw(statement(db, sql, [BILLING_JOB.into()])).await?;
    row.map_or(Ok(false), |row| row.try_get("", "handed_back"))
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
