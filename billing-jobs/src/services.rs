//! What the jobs of this crate work with.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use billing_scheduler::Clock;
use sea_orm::DatabaseConnection;

use crate::{
    daemon_status::StatusRow, panel::Panel, prepaid::endpoint::DeliverySettings,
    restore_detection::RestoreDetection,
};

/// Finds what an operator must solve.
#[async_trait]
pub trait ProblemSource: fmt::Debug + Send + Sync {
    /// Returns each problem as a word for programs and a sentence for people.
    ///
    /// # Errors
    /// The problems cannot be found; the message is for the log.
    async fn problems(&self) -> Result<Vec<(&'static str, String)>, String>;
}

/// What the jobs work with.
#[derive(Clone, Debug)]
pub struct Services {
    /// The panel's database.
    pub db: DatabaseConnection,
    /// The properties of its schema.
    pub panel: Panel,
    /// This process's row in the panel's table of daemons.
    pub status: Arc<StatusRow>,
    /// When the process started, by [`Clock::monotonic`].
    pub started: Duration,
    /// The longest time between two scheduled billings.
    pub billing_interval: Duration,
    /// Where the prepaid policy sends events.
    pub deliveries: DeliverySettings,
    /// The problems that operators are notified of; none in a process that does not know them.
    pub problems: Option<Arc<dyn ProblemSource>>,
    /// Whether billing relies on the panel guard: see [`Biller::relying_on_guard`](crate::billing::Biller::relying_on_guard).
    pub needs_guard: bool,
    /// What this process knows of the newest batch.
    pub restores: Arc<RestoreDetection>,
    /// The clock of the process.
    pub clock: Arc<dyn Clock>,
}
