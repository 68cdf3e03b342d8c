//! The jobs that ship with the daemon, as one plugin: billing, the audit of its books, the heartbeat that the panel reads, the
//! clean-up after daemons that died and the pruning of history. [`register`] makes them known; [`billing`] and [`audit`] also
//! serve without a scheduler.

pub mod audit;
pub mod billing;
pub mod currency;
mod heartbeat;
pub mod hold;
mod may_bill;
pub mod measured;
pub mod money;
pub mod panel;
pub mod panel_guard;
mod params;
pub mod period;
pub mod price;
mod prune_history;
pub mod restore;
mod stale_daemons;
pub mod status;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(not(feature = "testing"))]
#[path = "inert.rs"]
mod testing;
mod trace;
pub mod uncharged;

use std::{sync::Arc, time::Duration};

use billing_scheduler::{Clock, Registry, SystemClock};
use schemars::schema_for;
use sea_orm::DatabaseConnection;

pub use audit::{AuditJob, AuditParams};
pub use heartbeat::{Facts, Heartbeat, HeartbeatParams, Pulse, pulse};
pub use may_bill::{PANELS_PATIENCE, may_bill};
pub use prune_history::{PruneHistory, PruneHistoryParams};
pub use stale_daemons::{StaleDaemons, StaleDaemonsParams};

use crate::{
    billing::{Billing, BillingParams},
    panel::Panel,
    restore::LastCommit,
    status::StatusRow,
};

/// The name of the billing job, and the kind: its lease and fence guard the one ledger of a database, so there is one.
pub const BILLING_JOB: &str = "billing";

/// The kind of the job that audits.
pub const AUDIT_KIND: &str = "audit";

/// What the jobs work with.
#[derive(Clone, Debug)]
pub struct Services {
    /// The panel's database.
    pub db: DatabaseConnection,
    /// Which schema it has.
    pub panel: Panel,
    /// This process's row in the panel's table of daemons.
    pub status: Arc<StatusRow>,
    /// When the process started, by [`Clock::monotonic`].
    pub started: Duration,
    /// The longest time between two scheduled billings.
    pub billing_interval: Duration,
    /// Whether billing relies on the panel guard: see [`Biller::relying_on_guard`](billing::Biller::relying_on_guard).
    pub needs_guard: bool,
    /// What this machine committed last, if that is kept.
    pub last_commit: Option<LastCommit>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

impl Services {
    /// No database: enough to read and check the parameters of jobs, and nothing else.
    #[must_use]
    pub fn detached() -> Self {
        let db = DatabaseConnection::default();
        Self {
            status: Arc::new(StatusRow::new(db.clone(), "", "", &serde_json::Value::Null)),
            db,
            panel: Panel::OURS_ON_SQLITE,
            started: Duration::ZERO,
            billing_interval: Duration::ZERO,
            needs_guard: false,
            last_commit: None,
            clock: Arc::new(SystemClock),
        }
    }
}

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
