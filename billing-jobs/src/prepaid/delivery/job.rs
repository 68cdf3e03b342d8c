//! The deliveries as a job.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome, serde_json::json};
use billing_store::job_error;
use tracing::warn;

use super::{Drained, Which};
use crate::{
    Services,
    prepaid::{Claim, DeliverParams, DeliverySettings, Prepaid},
    services::ProblemSource,
};

/// How long a run begins attempts at most: then the next run is on time, so that a slow endpoint delays no other one.
const LIMIT: Duration = Duration::from_secs(30);

/// The job of kind `deliver`: sends the events that are due.
#[derive(Debug)]
pub struct DeliverJob {
    prepaid: Prepaid,
    problems: Option<Arc<dyn ProblemSource>>,
}

impl DeliverJob {
    /// Delivers the events in the database of `services`.
    #[must_use]
    pub fn new(services: &Services, params: DeliverParams) -> Self {
        let DeliverySettings { params: policy, .. } = &services.deliveries;
        let prepaid = Prepaid::new(services.db.clone(), services.panel, policy, services.billing_interval);
        Self {
            prepaid: prepaid.with_endpoints(Arc::from(params.endpoint)),
            problems: services.problems.clone(),
        }
    }

    /// Stores the problems that have appeared or cleared. The next run repeats what fails.
    async fn report_problems(&self, ctx: &JobContext) {
        let Some(source) = self.problems.as_ref().filter(|_| self.prepaid.reports_problems()) else { return };
        let claim = Claim { job: &ctx.occurrence.job, fencing_token: ctx.fencing_token };
        let reported = match source.problems().await {
            Ok(problems) => {
                self.prepaid.report_problems(claim, &problems).await.map_err(|error| error.to_string())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = reported {
            warn!(%error, "cannot compare the problems with those that were reported: {error}");
        }
    }
}

#[async_trait]
impl Job for DeliverJob {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        self.report_problems(ctx).await;
        let until = ctx.clock().monotonic() + LIMIT;
        let is_stopped = || ctx.stop_requested().is_some();
        let stop = || is_stopped() || ctx.clock().monotonic() > until;
        let drained = self.prepaid.deliver(Which::All, None, &stop).await.map_err(job_error)?;
        report(&drained);
        let Drained { sent, failed, dead } = drained;
        if is_stopped() {
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
