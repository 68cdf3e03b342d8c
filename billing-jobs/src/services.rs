//! What the jobs of this crate work with.

use std::{sync::Arc, time::Duration};

use billing_scheduler::Clock;
use sea_orm::DatabaseConnection;

use crate::{daemon_status::StatusRow, panel::Panel, restore_detection::CommitMarker};

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
    /// Whether billing relies on the panel guard: see [`Biller::relying_on_guard`](crate::billing::Biller::relying_on_guard).
    pub needs_guard: bool,
    /// What this machine committed last, if that is kept.
    pub last_commit: Option<CommitMarker>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}
