//! The prepaid policy as a job.

use std::time::Duration;

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome, serde_json::json};
use billing_store::job_error;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use tracing::info;

use super::{
    Prepaid,
    evaluate::{Claim, EvaluationError},
    rules::{Mode, Rules},
};
use crate::{Services, period::Micros};

/// The parameters of kind `prepaid`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PrepaidParams {
    /// `watch` evaluates and records what would be sent, and sends nothing.
    pub mode: PrepaidMode,
    /// The hours of runway at which customers are notified, the highest first.
    #[serde(deserialize_with = "notice_hours")]
    #[schemars(length(min = 1), inner(range(min = 1, max = 720)))]
    pub notice_hours: Vec<u16>,
    /// How long an exhausted wallet is tolerated while billing works, from `1h` to `30d`.
    #[serde(deserialize_with = "grace", serialize_with = "billing_scheduler::duration::serialize")]
    #[schemars(with = "String", regex(pattern = billing_scheduler::duration::PATTERN))]
    pub grace: Duration,
    /// The hours of runway with which a suspended organization is resumed.
    pub resume_hours: std::num::NonZeroU16,
}

/// The modes of the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PrepaidMode {
    /// Nothing is sent.
    #[default]
    Watch,
}

impl Default for PrepaidParams {
    fn default() -> Self {
        Self {
            mode: PrepaidMode::Watch,
            notice_hours: vec![72, 24, 1],
            grace: Duration::from_hours(24),
            resume_hours: std::num::NonZeroU16::MIN,
        }
    }
}

impl PrepaidParams {
    /// The rules that these parameters set.
    #[must_use]
    pub fn rules(&self) -> Rules {
        let grace = Micros::try_from(self.grace.as_micros()).unwrap_or(Micros::MAX);
        Rules::new(&self.notice_hours, grace, self.resume_hours.get().into())
    }

    pub(super) fn mode(&self) -> Mode {
        match self.mode {
            PrepaidMode::Watch => Mode::Watch,
        }
    }
}

fn notice_hours<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    let hours = Vec::<u16>::deserialize(deserializer)?;
    let is_valid = !hours.is_empty()
        && hours.iter().all(|hours| (1..=720).contains(hours))
        && hours.is_sorted_by(|one, next| one > next);
    if is_valid {
        return Ok(hours);
    }
    Err(D::Error::custom(
        "is not a list of hours from 720 to 1, each less than the one before, such as [72, 24, 1]",
    ))
}

fn grace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let grace = billing_scheduler::duration::deserialize(deserializer)?;
    if (Duration::from_hours(1)..=Duration::from_hours(720)).contains(&grace) {
        return Ok(grace);
    }
    Err(D::Error::custom("is not a duration from 1h to 30d"))
}

/// The job of kind `prepaid`.
#[derive(Debug)]
pub struct PrepaidJob {
    prepaid: Prepaid,
}

impl PrepaidJob {
    /// Checks the organizations in the database of `services`.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "the registry passes parameters by value")]
    pub fn new(services: &Services, params: PrepaidParams) -> Self {
        let prepaid = Prepaid::new(services.db.clone(), services.panel, &params, services.billing_interval);
        Self { prepaid }
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
        if evaluation.notices > 0 {
            info!(
                notices = evaluation.notices,
                "{} notices are due; mode `watch` sends none", evaluation.notices
            );
        }
        let details = json!({
            "checked": evaluation.checked,
            "changed": evaluation.changed,
            "notices": evaluation.notices,
        });
        Ok(Outcome::Done { items: evaluation.checked, details })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn parameters_reject_unusable_values() {
        let params = |params| from_value::<PrepaidParams>(params).map_err(|error| error.to_string());
        assert_eq!(params(json!({})), Ok(PrepaidParams::default()));
        assert_eq!(
            params(json!({ "notice-hours": [720, 1], "grace": "1h", "resume-hours": 3 }))
                .map(|params| params.rules().recovered_hours),
            Ok(900)
        );
        for invalid in [
            json!({ "notice-hours": [] }),
            json!({ "notice-hours": [24, 72] }),
            json!({ "notice-hours": [24, 24] }),
            json!({ "notice-hours": [721] }),
            json!({ "notice-hours": [1, 0] }),
            json!({ "grace": "59m" }),
            json!({ "grace": "31d" }),
            json!({ "resume-hours": 0 }),
            json!({ "mode": "enforce" }),
        ] {
            params(invalid.clone()).expect_err(&invalid.to_string());
        }
    }
}
