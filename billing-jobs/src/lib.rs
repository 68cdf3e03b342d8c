//! The jobs that ship with the daemon, as one plugin: billing, the audit of the ledger, the prepaid policy, the heartbeat that the panel
//! reads, the clean-up of rows of dead daemons, and the pruning of history. [`register`] declares them; [`billing`] and [`audit`] also work
//! without a scheduler.

pub mod audit;
pub mod billing;
pub mod currency;
pub mod daemon_status;
#[cfg(feature = "testing")]
pub mod fault_injection;
#[cfg(not(feature = "testing"))]
mod fault_injection;
mod heartbeat;
pub mod hold;
mod job_names;
mod may_bill;
pub mod metrics;
pub mod money;
pub mod panel;
pub mod panel_guard;
mod params;
pub mod period;
pub mod prepaid;
pub mod price;
mod prune_history;
pub mod restore_detection;
mod services;
mod spans;
mod stale_daemons;
pub mod uncharged;

use billing_scheduler::{Job, Registry};
use schemars::{JsonSchema, schema_for};
use serde::de::DeserializeOwned;

pub use audit::{AuditJob, AuditParams};
pub use heartbeat::{
    Heartbeat, HeartbeatDecision, HeartbeatFacts, HeartbeatParams, decide as decide_heartbeat,
};
pub use job_names::{AUDIT_KIND, BILLING_JOB, DELIVER_KIND, PREPAID_KIND};
pub use may_bill::{PANEL_TAKEOVER_AFTER, may_bill};
pub use prepaid::{DeliverJob, DeliverParams, PrepaidJob, PrepaidParams};
pub use prune_history::{PruneHistory, PruneHistoryParams};
pub use services::{ProblemSource, Services};
pub use stale_daemons::{StaleDaemons, StaleDaemonsParams};

use crate::billing::{Billing, BillingParams};

/// Declares the kinds `audit`, `billing`, `deliver`, `heartbeat`, `prepaid`, `prune-history` and `stale-daemons`, whose jobs work with `services`.
/// Without services the registry checks parameters and builds no job.
///
/// # Panics
/// If one of them is already declared.
pub fn register(registry: &mut Registry, services: Option<&Services>) {
    kind(registry, services, BILLING_JOB, |services, params: BillingParams| Billing::new(services, &params));
    kind(registry, services, "heartbeat", |services, params| Heartbeat::new(services.clone(), params));
    kind(registry, services, "stale-daemons", StaleDaemons::new);
    kind(registry, services, AUDIT_KIND, AuditJob::new);
    kind(registry, services, PREPAID_KIND, PrepaidJob::new);
    kind(registry, services, "prune-history", PruneHistory::new);
    let deliver =
        registry.declare::<DeliverParams>(DELIVER_KIND).schema(|| schema_for!(DeliverParams).to_value());
    let deliver = deliver.secrets(DeliverParams::secrets);
    if let Some(services) = services.cloned() {
        deliver.job(move |params| DeliverJob::new(&services, params));
    }
}

fn kind<P, J>(registry: &mut Registry, services: Option<&Services>, name: &str, make: fn(&Services, P) -> J)
where
    P: DeserializeOwned + JsonSchema + 'static,
    J: Job,
{
    let kind = registry.declare::<P>(name).schema(|| schema_for!(P).to_value());
    if let Some(services) = services.cloned() {
        kind.job(move |params| make(&services, params));
    }
}
