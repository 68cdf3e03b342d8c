//! The status of billing: read once, judged by one pure function, and shown alike by the command line, HTTP and the metrics.

mod halt;
pub(crate) mod jobs;
pub(crate) mod panel_presence;
mod prepaid;
mod problems;
mod read;
#[cfg(test)]
pub(crate) mod testing;
mod views;

use std::time::Duration;

use billing_jobs::{
    BILLING_JOB, PREPAID_KIND, PrepaidParams,
    billing::{BillingParams, BillingSettings},
};
use billing_scheduler::JobSpec;
use serde::de::DeserializeOwned;

pub use halt::HaltView;
pub use prepaid::{DeadDeliveries, PrepaidStatus};
pub use problems::problems;
pub(crate) use read::daemons_alive;
pub use read::{read, runs};
pub(crate) use views::wrong_clock;
pub use views::{
    AmountDue, BillingRole, Daemon, HoldSummary, JobState, JobView, LeaseView, Liveness, PanelGuardView,
    PanelStatus, PauseView, Problem, RetryView, RunView, Status, Uncharged,
};

use crate::config::{Config, PanelBilling};

/// What a judgement needs of the configuration. Without a configuration, the rows alone are judged.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The enabled jobs.
    pub jobs: Vec<JobSpec>,
    /// The time between two scheduled billing runs.
    pub billing_interval: Option<Duration>,
    /// Whether the panel's own billing is switched off.
    pub panel_billing: PanelBilling,
    /// How the fleet is billed.
    pub billing: BillingSettings,
    /// The parameters of the prepaid policy.
    pub prepaid: PrepaidParams,
}

impl Expected {
    /// Whether billing is one of the jobs; unknown without a configuration.
    pub(crate) fn has_billing(&self) -> Option<bool> {
        (!self.jobs.is_empty()).then(|| self.jobs.iter().any(|spec| spec.kind == BILLING_JOB))
    }

    /// Whether the prepaid policy is one of the jobs.
    pub(crate) fn has_prepaid(&self) -> bool {
        self.jobs.iter().any(|spec| spec.kind == PREPAID_KIND)
    }
}

impl From<&Config> for Expected {
    fn from(config: &Config) -> Self {
        let billing: BillingParams = params_of(config, BILLING_JOB);
        Self {
            jobs: config.jobs.iter().map(|(spec, _)| spec.clone()).collect(),
            billing_interval: config.billing_interval,
            panel_billing: config.daemon.panel_billing,
            billing: BillingSettings::from(&billing).at_interval(config.billing_interval_or_default()),
            prepaid: params_of(config, PREPAID_KIND),
        }
    }
}

/// The parameters of the first job of this kind, or the defaults if no job is of this kind.
fn params_of<T: DeserializeOwned + Default>(config: &Config, kind: &str) -> T {
    let job = config.jobs.iter().find(|(spec, _)| spec.kind == kind);
    job.and_then(|(_, params)| serde_json::from_value(params.clone()).ok()).unwrap_or_default()
}
