//! Billing as a job: one run over the fleet, reported to the panel's status row.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome};
use billing_store::job_error;
use schemars::JsonSchema;
use serde::Deserialize;
use tracing::{info, warn};

use super::{
    BillReport, Biller, BillingError, BillingOptions, BillingSettings, Mode, RunDetails, Totals,
    batch_sizing::MOST_CONNECTIONS,
};
use crate::{
    Services,
    daemon_status::{RunEnd, StatusRow},
    money::Money,
    params,
    price::DailyBackupFactor,
    uncharged::Uncharged,
};

/// The parameters of kind `billing`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct BillingParams {
    /// An instance with more due hours is held until approved.
    pub max_catch_up_hours: u32,
    /// What daily backups cost, as a multiple of the plan's hourly backup price: text with at most one decimal. If it is not set, it
    /// is the factor of the panel's generation: 1.5 for a panel of November 2025 (G2), 1 for any other.
    #[serde(with = "params::maybe_tenths", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = params::tenths::PATTERN))]
    pub daily_backup_factor: Option<i64>,
    /// About how many instances one transaction bills; it adapts if this is not set.
    pub batch_instances: Option<NonZeroU32>,
    /// How many transactions run at once, at most four, and on SQLite one; it adapts if this is not set.
    #[schemars(range(max = MOST_CONNECTIONS))]
    pub connections: Option<NonZeroU32>,
    /// A run that charges more for an hour than the recent ones by this factor waits for an approval: text with at most one decimal;
    /// `"0"`: none does.
    #[serde(with = "params::tenths")]
    #[schemars(with = "String", regex(pattern = params::tenths::PATTERN))]
    pub spike_factor: i64,
    /// What a run may charge in any case: an amount as text.
    #[serde(with = "params::money")]
    #[schemars(with = "String", regex(pattern = params::money::PATTERN))]
    pub spike_floor: Money,
    /// When billing has not worked for this long, the panel may bill; at least five quarters of the time between two billings.
    #[serde(with = "billing_scheduler::duration")]
    #[schemars(with = "String", regex(pattern = billing_scheduler::duration::PATTERN))]
    pub hand_back_after: Duration,
}

impl Default for BillingParams {
    fn default() -> Self {
        let BillingSettings { max_catch_up_hours, spike_factor, spike_floor, hand_back_after, .. } =
            BillingSettings::default();
        Self {
            max_catch_up_hours,
            daily_backup_factor: None,
            batch_instances: None,
            connections: None,
            spike_factor,
            spike_floor,
            hand_back_after,
        }
    }
}

impl From<&BillingParams> for BillingSettings {
    fn from(params: &BillingParams) -> Self {
        Self {
            max_catch_up_hours: params.max_catch_up_hours,
            daily_backup_factor: params.daily_backup_factor.map(DailyBackupFactor),
            batch_instances: params.batch_instances.map(NonZeroU32::get),
            connections: params.connections.map(NonZeroU32::get),
            spike_factor: params.spike_factor,
            spike_floor: params.spike_floor,
            hand_back_after: params.hand_back_after,
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
        let settings = BillingSettings::from(params).at_interval(services.billing_interval);
        let biller = Biller::new(services.db.clone(), services.panel, settings)
            .with_restore_detection(Arc::clone(&services.restores))
            .relying_on_guard(services.needs_guard);
        Self { biller, status: Arc::clone(&services.status) }
    }

    async fn report(&self, totals: &Totals, end: RunEnd<'_>) {
        if let Err(error) = self.status.report_run(totals, end).await {
            warn!(%error, "cannot write the totals of the run to the status row: {error}");
        }
    }
}

#[async_trait]
impl Job for Billing {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let first_prices = Mutex::new(Vec::new());
        let run = BillingOptions {
            id: ctx.run_id,
            mode: Mode::Commit(ctx.fencing_token),
            as_of: None,
            approved: None,
            lists_beyond_limit: false,
            stop: &|| ctx.stop_requested(),
            progress: &|_| {},
            first_prices: &|first| {
                ctx.report(RunDetails::unfinished(first, None).to_json());
                first_prices.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(first);
            },
        };
        match self.biller.bill(&run).await {
            Ok(BillReport { totals, stopped: Some(reason), .. }) => {
                info!(
                    "billing stopped after {} instances: {reason}; the rest is billed by the next run",
                    totals.charged
                );
                self.report(&totals, RunEnd::Interrupted).await;
                Ok(Outcome::Interrupted { items: totals.charged })
            }
            Ok(bill) => {
                let totals = &bill.totals;
                self.biller.record_success(ctx.fencing_token).await.map_err(job_error)?;
                self.report(totals, RunEnd::Done).await;
                let amounts = totals.amounts();
                info!(
                    charged = totals.charged,
                    held = totals.held,
                    hours = totals.hours,
                    %amounts,
                    "charged {amounts} for {} hours of {} instances, {} held",
                    totals.hours,
                    totals.charged,
                    totals.held,
                );
                for Uncharged { reason, debt } in &bill.uncharged {
                    info!(
                        reason,
                        instances = debt.instances,
                        hours = debt.hours,
                        "{} instances with up to {} hours uncharged: {reason}",
                        debt.instances,
                        debt.hours,
                    );
                }
                Ok(Outcome::Done { items: totals.charged, details: RunDetails::finished(&bill).to_json() })
            }
            Err(error) => {
                let first_prices = first_prices.into_inner().unwrap_or_else(PoisonError::into_inner);
                ctx.report(RunDetails::unfinished(&first_prices, Some(&error)).to_json());
                if let BillingError::Spike(_) = &error {
                    // The panel would charge the same prices without an approval, so it waits for as long as this run waits.
                    self.biller.record_success(ctx.fencing_token).await.map_err(job_error)?;
                }
                let sentence = error.to_string();
                let totals = self.biller.totals_of(ctx.run_id).await.unwrap_or_default();
                self.report(&totals, RunEnd::Failed(&sentence)).await;
                Err(error.into())
            }
        }
    }
}
