//! Billing as a job: one run over the fleet, told to the panel's status row.

use std::{num::NonZeroU32, sync::Arc};

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome, serde_json::json};
use schemars::JsonSchema;
use serde::Deserialize;
use tracing::{info, warn};

use super::{Bill, Biller, Mode, Run, Settings, Totals, pace::MOST_CONNECTIONS};
use crate::{Services, params, price::DailyBackupFactor, status::StatusRow};

/// The parameters of kind `billing`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct BillingParams {
    /// An instance with more due hours is held until approved.
    pub max_catch_up_hours: u32,
    /// What daily backups cost, as a multiple of the plan's hourly backup price: text with at most one decimal.
    #[serde(with = "params::tenths")]
    #[schemars(with = "String", regex(pattern = params::tenths::PATTERN))]
    pub daily_backup_factor: i64,
    /// About how many instances one transaction bills; it adapts if this is not set.
    pub batch_instances: Option<NonZeroU32>,
    /// How many transactions are under way at once, at most four, and on SQLite one; it adapts if this is not set.
    #[schemars(range(max = MOST_CONNECTIONS))]
    pub connections: Option<NonZeroU32>,
}

impl Default for BillingParams {
    fn default() -> Self {
        let Settings { max_catch_up_hours, daily_backup_factor, .. } = Settings::default();
        Self {
            max_catch_up_hours,
            daily_backup_factor: daily_backup_factor.0,
            batch_instances: None,
            connections: None,
        }
    }
}

impl From<&BillingParams> for Settings {
    fn from(params: &BillingParams) -> Self {
        Self {
            max_catch_up_hours: params.max_catch_up_hours,
            daily_backup_factor: DailyBackupFactor(params.daily_backup_factor),
            batch_instances: params.batch_instances.map(NonZeroU32::get),
            connections: params.connections.map(NonZeroU32::get),
        }
    }
}

/// The job of kind `billing`.
#[derive(Debug)]
pub struct Billing {
    biller: Biller,
    status: Arc<StatusRow>,
}

impl Billing {
    /// Bills the fleet of `services`' database.
    #[must_use]
    pub fn new(services: &Services, params: &BillingParams) -> Self {
        let biller = Biller::new(services.db.clone(), services.panel, params.into())
            .remembering(services.last_commit.clone());
        Self { biller, status: Arc::clone(&services.status) }
    }

    async fn tell(&self, totals: Totals, error: Option<&str>) {
        if let Err(error) = self.status.run_ended(totals, error).await {
            warn!(%error, "could not write the run's figures to the status row: {error}");
        }
    }
}

#[async_trait]
impl Job for Billing {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let run = Run {
            id: ctx.run_id,
            mode: Mode::Commit(ctx.fence),
            as_of: None,
            catch_up_approved: false,
            stop: &|| ctx.stop_requested(),
            progress: &|_| {},
        };
        match self.biller.bill(&run).await {
            Ok(Bill { totals, stopped: Some(reason), .. }) => {
                info!(
                    "billing stopped after {} instances: {reason}; the rest is billed by the next run",
                    totals.charged
                );
                self.tell(totals, None).await;
                Ok(Outcome::Interrupted { items: totals.charged })
            }
            Ok(Bill { totals, as_of, stopped: None }) => {
                self.biller.mark_worked(ctx.fence).await.map_err(JobError::retry)?;
                self.tell(totals, None).await;
                info!(
                    charged = totals.charged,
                    held = totals.held,
                    hours = totals.hours,
                    amount = %totals.amount,
                    "charged {} for {} hours of {} instances, {} held",
                    totals.amount,
                    totals.hours,
                    totals.charged,
                    totals.held,
                );
                Ok(Outcome::Done { items: totals.charged, details: details(&totals, as_of) })
            }
            Err(error) => {
                let sentence = error.to_string();
                let totals = self.biller.totals_of(ctx.run_id).await.unwrap_or_default();
                self.tell(totals, Some(&sentence)).await;
                Err(JobError::retry(error))
            }
        }
    }
}

/// A run's figures as they stand in its row.
#[must_use]
pub fn details(
    totals: &Totals,
    as_of: chrono::DateTime<chrono::Utc>,
) -> billing_scheduler::serde_json::Value {
    json!({
        "charged": totals.charged,
        "held": totals.held,
        "hours": totals.hours,
        "amount": totals.amount.to_string(),
        "as_of": as_of,
    })
}
