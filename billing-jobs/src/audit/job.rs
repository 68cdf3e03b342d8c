//! The audit as a job: what `billing-daemon audit` prints, on a schedule.

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome, serde_json::json};
use billing_store::job_error;
use schemars::JsonSchema;
use sea_orm::DatabaseConnection;
use serde::Deserialize;
use tracing::error;

use super::{Violation, audit_until};
use crate::Services;

/// The parameters of kind `audit`: none.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditParams {}

/// The job of kind `audit`.
#[derive(Debug)]
pub struct AuditJob {
    db: DatabaseConnection,
}

impl AuditJob {
    /// Audits the database of `services`.
    #[must_use]
    pub fn new(services: &Services, _: AuditParams) -> Self {
        Self { db: services.db.clone() }
    }
}

#[async_trait]
impl Job for AuditJob {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let stop = || ctx.stop_requested().is_some();
        // Half of an audit has no result: the next run starts again.
        let Some(audit) = audit_until(&self.db, stop).await.map_err(job_error)? else {
            return Ok(Outcome::Interrupted { items: 0 });
        };
        for violation in &audit.violations {
            let Violation { check, detail, resolve } = violation;
            error!(audit.check = %check, "{check}: {detail}; to resolve: {resolve}");
        }
        let details = json!({ "checked": audit.checked, "violations": audit.violations.len() });
        Ok(Outcome::Done { items: audit.checked, details })
    }
}
