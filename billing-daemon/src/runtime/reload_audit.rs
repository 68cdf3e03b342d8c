//! The daemon's entries in the audit log: another text of jobs.toml is in force.

use std::time::Duration;

use billing_jobs::Services;
use billing_scheduler::ConfigChanges;
use billing_store::audit_log::{self, AuditEvent, fingerprint};
use sea_orm::DatabaseConnection;
use serde_json::json;
use tokio::task::JoinSet;
use tracing::{error, warn};

use crate::runtime::reload::ConfigFile;

/// How long after a failure an entry is written again.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// How long the shutdown waits for entries.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The reloads of one daemon.
pub(crate) struct ReloadAudit {
    db: DatabaseConnection,
    daemon_id: String,
    /// The fingerprint of the text that is in force.
    text: Option<String>,
    waiting: JoinSet<()>,
}

impl ReloadAudit {
    /// Returns the audit of a daemon that started with `source`.
    pub(crate) fn new(services: &Services, source: Option<&ConfigFile>) -> Self {
        Self {
            db: services.db.clone(),
            daemon_id: services.status.daemon_id().to_owned(),
            text: source.map(|source| fingerprint(source.text())),
            waiting: JoinSet::new(),
        }
    }

    /// Records that the text with this fingerprint is in force. The entry contains the owner of the file, since its author is unknown,
    /// and not the text, which may contain a password. While the database is unreachable a background task retries.
    pub(crate) fn record(
        &mut self,
        file: &str,
        fingerprint: String,
        owner: Option<u32>,
        changes: &ConfigChanges,
    ) {
        let before = self.text.replace(fingerprint);
        if before == self.text {
            return;
        }
        let entry = AuditEvent {
            by: self.daemon_id.clone(),
            action: "reload",
            job: String::new(),
            reason: None,
            details: json!({
                "file": file,
                "owner_uid": owner,
                "changes": changes.to_string().lines().collect::<Vec<_>>(),
                "before": { "sha256": before },
                "after": { "sha256": self.text },
            }),
        };
        let db = self.db.clone();
        self.waiting.spawn(async move {
            while let Err(error) = audit_log::append_in_own_transaction(&db, &entry).await {
                warn!(%error, "cannot record the reload in the audit log; retrying: {error}");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        });
    }

    /// Waits for entries that are not written yet, but not long.
    pub(crate) async fn finish(&mut self) {
        let all = async { while self.waiting.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, all).await.is_err() {
            error!("{} reloads are not in the audit log: the database did not respond", self.waiting.len());
        }
    }
}
