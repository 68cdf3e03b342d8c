//! What the daemon puts on record by itself: that another text of jobs.toml is in force.

use std::time::Duration;

use billing_jobs::Services;
use billing_scheduler::ConfigChanges;
use billing_store::audit_log::{self, AuditEvent, fingerprint};
use sea_orm::DatabaseConnection;
use serde_json::json;
use tokio::task::JoinSet;
use tracing::{error, warn};

use crate::runtime::reload::ConfigFile;

/// How long after a failure something is put on record again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long the end of the daemon waits for it.
const LAST: Duration = Duration::from_secs(2);

/// The reloads of one daemon.
pub(crate) struct ReloadAudit {
    db: DatabaseConnection,
    daemon: String,
    /// The fingerprint of the text that is in force.
    text: Option<String>,
    waiting: JoinSet<()>,
}

impl ReloadAudit {
    /// Of a daemon that began with `source`.
    pub(crate) fn new(services: &Services, source: Option<&ConfigFile>) -> Self {
        Self {
            db: services.db.clone(),
            daemon: services.status.daemon_id().to_owned(),
            text: source.map(|source| fingerprint(source.text())),
            waiting: JoinSet::new(),
        }
    }

    /// Writes down that what `source` says now is in force. The file tells whose it is, not who wrote it; nor does the record hold
    /// the text, which may have a password in it. While the database is away this waits, and jobs do not wait for it.
    pub(crate) fn accepted(&mut self, source: &ConfigFile, changes: &ConfigChanges) {
        let before = self.text.replace(fingerprint(source.text()));
        if before == self.text {
            return;
        }
        let entry = AuditEvent {
            by: self.daemon.clone(),
            action: "reload",
            job: String::new(),
            reason: None,
            details: json!({
                "file": source.name(),
                "owner_uid": source.owner(),
                "changes": changes.to_string().lines().collect::<Vec<_>>(),
                "before": { "sha256": before },
                "after": { "sha256": self.text },
            }),
        };
        let db = self.db.clone();
        self.waiting.spawn(async move {
            while let Err(error) = audit_log::append_in_own_transaction(&db, &entry).await {
                warn!(%error, "cannot put the reload on record, and try again: {error}");
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    /// Waits a moment for what is not on record yet.
    pub(crate) async fn finish(&mut self) {
        let all = async { while self.waiting.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST, all).await.is_err() {
            error!("{} reloads are not on record: the database did not answer", self.waiting.len());
        }
    }
}
