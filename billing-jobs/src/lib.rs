//! The jobs that ship with the daemon, as one plugin: billing, the audit of its books, the heartbeat that the panel reads, the
//! clean-up after daemons that died and the pruning of history. [`register`] makes them known; [`billing`] and [`audit`] also
//! serve without a scheduler.

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
pub mod price;
mod prune_history;
pub mod restore_detection;
mod services;
mod spans;
mod stale_daemons;
pub mod uncharged;

use billing_scheduler::Registry;
use schemars::schema_for;

pub use audit::{AuditJob, AuditParams};
pub use heartbeat::{
    Heartbeat, HeartbeatDecision, HeartbeatFacts, HeartbeatParams, decide as decide_heartbeat,
};
pub use job_names::{AUDIT_KIND, BILLING_JOB};
pub use may_bill::{PANEL_TAKEOVER_AFTER, may_bill};
pub use prune_history::{PruneHistory, PruneHistoryParams};
pub use services::Services;
pub use stale_daemons::{StaleDaemons, StaleDaemonsParams};

use crate::billing::{Billing, BillingParams};

/// Makes the kinds `audit`, `billing`, `heartbeat`, `stale-daemons` and `prune-history` known.
///
/// # Panics
/// If one of them is known already.
pub fn register(registry: &mut Registry, services: &Services) {
    let own = services.clone();
    registry.register(BILLING_JOB, move |params| Billing::new(&own, &params));
    let own = services.clone();
    registry.register("heartbeat", move |params| Heartbeat::new(own.clone(), params));
    let own = services.clone();
    registry.register("stale-daemons", move |params| StaleDaemons::new(&own, params));
    let own = services.clone();
    registry.register(AUDIT_KIND, move |params| AuditJob::new(&own, params));
    let own = services.clone();
    registry.register("prune-history", move |params| PruneHistory::new(&own, params));
    registry.describe(BILLING_JOB, || schema_for!(BillingParams).to_value());
    registry.describe("heartbeat", || schema_for!(HeartbeatParams).to_value());
    registry.describe("stale-daemons", || schema_for!(StaleDaemonsParams).to_value());
    registry.describe(AUDIT_KIND, || schema_for!(AuditParams).to_value());
    registry.describe("prune-history", || schema_for!(PruneHistoryParams).to_value());
}
