//! The prepaid policy as a job.

use std::time::Duration;

use async_trait::async_trait;
use billing_scheduler::{
    ControlAction, ControlRequest, Job, JobContext, JobError, Outcome, serde_json::json,
};
use billing_store::{job_error, submit_request};
use sea_orm::DatabaseConnection;
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    Prepaid, Which, delivery,
    evaluate::{Claim, Evaluation, EvaluationError},
    params::PrepaidParams,
};
use crate::{BILLING_JOB, Services};

/// The job of kind `prepaid`.
#[derive(Debug)]
pub struct PrepaidJob {
    prepaid: Prepaid,
    db: DatabaseConnection,
}

/// How long a run sends orders at most: the next check must not wait for slow receivers.
const DELIVERY_LIMIT: Duration = Duration::from_secs(25);
/// The operator of a run of billing that charges arrears.
const REQUESTED_BY: &str = "prepaid";

impl PrepaidJob {
    /// Checks the organizations in the database of `services`.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "the registry passes parameters by value")]
    pub fn new(services: &Services, params: PrepaidParams) -> Self {
        let prepaid = Prepaid::new(services.db.clone(), services.panel, &params, services.billing_interval);
        Self {
            prepaid: prepaid.with_endpoints(services.deliveries.endpoints.clone()),
            db: services.db.clone(),
        }
    }

    /// Requests a run of billing, so that arrears are charged without waiting for the next one.
    async fn charge_arrears(&self, ctx: &JobContext) {
        let request = ControlRequest {
            id: Uuid::now_v7(),
            job: BILLING_JOB.to_owned(),
            action: ControlAction::RunNow,
            by: REQUESTED_BY.to_owned(),
            reason: Some("an organization is resumed".to_owned()),
            at: ctx.clock().now(),
        };
        // The next run by schedule charges them as well.
        if let Err(error) = submit_request(&self.db, &request).await {
            warn!(%error, "cannot request a run of job `{BILLING_JOB}`: {error}");
        }
    }
}

#[async_trait]
impl Job for PrepaidJob {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let claim = Claim { job: &ctx.occurrence.job, fencing_token: ctx.fencing_token };
        let stop = || ctx.stop_requested().is_some();
        let evaluation = self.prepaid.evaluate(claim, None, &stop).await.map_err(|error| match error {
            EvaluationError::Database(error) => job_error(error),
            other => JobError::retry(other),
        })?;
        if evaluation.stopped {
            return Ok(Outcome::Interrupted { items: evaluation.checked });
        }
        log(&evaluation);
        if evaluation.resumed > 0 {
            self.charge_arrears(ctx).await;
        }
        // The orders do not wait for the next run of the job that makes the other deliveries.
        if evaluation.has_deliveries {
            let until = ctx.clock().monotonic() + DELIVERY_LIMIT;
            let stop = || stop() || ctx.clock().monotonic() > until;
            let drained = self.prepaid.deliver(Which::Orders, None, &stop).await.map_err(job_error)?;
            delivery::report(&drained);
        }
        let details = json!({
            "checked": evaluation.checked,
            "changed": evaluation.changed,
            "notices": evaluation.notices,
            "suspended": evaluation.suspended,
            "resumed": evaluation.resumed,
        });
        Ok(Outcome::Done { items: evaluation.checked, details })
    }
}

fn log(evaluation: &Evaluation) {
    let Evaluation { notices, suspended, resumed, .. } = evaluation;
    if notices + suspended + resumed > 0 {
        info!(
            notices,
            suspended,
            resumed,
            "{notices} notices are due; {suspended} organizations are suspended, {resumed} resumed"
        );
    }
}
