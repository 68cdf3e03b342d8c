//! The deliveries as a job.

use std::sync::Arc;

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome, serde_json::json};
use billing_store::job_error;
use tracing::warn;

use super::{Drained, Which};
use crate::{
    Services,
    prepaid::{DeliverParams, DeliverySettings, Prepaid},
};

/// The job of kind `deliver`: sends the events that are due.
#[derive(Debug)]
pub struct DeliverJob {
    prepaid: Prepaid,
}

impl DeliverJob {
    /// Delivers the events in the database of `services`.
    #[must_use]
    pub fn new(services: &Services, params: DeliverParams) -> Self {
        let DeliverySettings { params: policy, .. } = &services.deliveries;
        let prepaid = Prepaid::new(services.db.clone(), services.panel, policy, services.billing_interval);
        Self { prepaid: prepaid.with_endpoints(Arc::from(params.endpoint)) }
    }
}

#[async_trait]
impl Job for DeliverJob {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let stop = || ctx.stop_requested().is_some();
        let drained = self.prepaid.deliver(Which::All, None, &stop).await.map_err(job_error)?;
        report(&drained);
        let Drained { sent, failed, dead } = drained;
        if stop() {
            return Ok(Outcome::Interrupted { items: sent });
        }
        Ok(Outcome::Done { items: sent, details: json!({ "sent": sent, "failed": failed, "dead": dead }) })
    }
}

/// Logs what a person must know of.
pub(in crate::prepaid) fn report(drained: &Drained) {
    if drained.dead > 0 {
        warn!(
            dead = drained.dead,
            "{} deliveries are not attempted again; `billing-daemon events list --status dead` shows them",
            drained.dead
        );
    }
}
