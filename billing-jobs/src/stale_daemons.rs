//! Cleans up the panel's table of daemons: without it the row of every process would stay permanently.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome, serde_json::json};
use billing_store::job_error;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{Services, daemon_status::StatusRow};

/// The parameters of kind `stale-daemons`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct StaleDaemonsParams {
    /// A daemon that has written nothing for this long is marked as stopped.
    #[serde(with = "billing_scheduler::duration")]
    #[schemars(with = "String", regex(pattern = billing_scheduler::duration::PATTERN))]
    pub dead_after: Duration,
    /// The row of a stopped daemon is deleted after this long.
    #[serde(with = "billing_scheduler::duration")]
    #[schemars(with = "String", regex(pattern = billing_scheduler::duration::PATTERN))]
    pub keep: Duration,
}

impl Default for StaleDaemonsParams {
    fn default() -> Self {
        Self { dead_after: Duration::from_mins(10), keep: Duration::from_hours(30 * 24) }
    }
}

/// The job of kind `stale-daemons`.
#[derive(Debug)]
pub struct StaleDaemons {
    status: Arc<StatusRow>,
    params: StaleDaemonsParams,
}

impl StaleDaemons {
    /// A job that cleans up the table in the database of `services`.
    #[must_use]
    pub fn new(services: &Services, params: StaleDaemonsParams) -> Self {
        Self { status: Arc::clone(&services.status), params }
    }
}

#[async_trait]
impl Job for StaleDaemons {
    async fn run(&self, _ctx: &JobContext) -> Result<Outcome, JobError> {
        let marked = self.status.mark_dead(self.params.dead_after).await.map_err(job_error)?;
        let pruned = self.status.prune(self.params.keep).await.map_err(job_error)?;
        Ok(Outcome::Done { items: marked + pruned, details: json!({ "marked": marked, "pruned": pruned }) })
    }
}
