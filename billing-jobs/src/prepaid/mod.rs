//! The prepaid policy: how many hours each wallet covers, who is notified of it, and when instances are suspended and resumed.
//! [`decide`](fn@decide) decides for one organization and is pure. [`Prepaid`] reads the facts of a fleet and writes what changes.

mod assessment;
mod decide;
mod delivery;
pub(crate) mod endpoint;
mod evaluate;
mod event;
mod event_type;
mod job;
mod params;
mod problems;
pub(crate) mod prune;
mod read;
mod reconcile;
mod rules;
mod runway;
mod sql;
mod wanted;
mod window;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use sea_orm::{DatabaseConnection, DbErr};

pub use self::{
    assessment::Assessment,
    decide::{
        Decision, Desired, Facts, Given, Guard, Notice, NoticeRow, Order, Standing, State, Unmet, decide,
        earliest, suspension_time, unmet,
    },
    delivery::{DeliverJob, Drained, Which},
    endpoint::{
        Answer, DeliverParams, DeliverySettings, Endpoint, EndpointKind, EndpointParams, Recipient, Status,
        Verdict,
    },
    evaluate::{Claim, Evaluation, EvaluationError},
    event::{Instance, InstanceList},
    event_type::{TEST, TYPES, notice_type, order_type},
    job::PrepaidJob,
    params::PrepaidParams,
    rules::{Level, Mode, Policy, PolicyMode, Rules},
    runway::{Account, Runway},
    wanted::Wanted,
    window::{Window, WindowParams},
};
use self::{
    read::{Context, PAGE, Selection},
    sql::Statements,
};
use crate::{
    PREPAID_KIND,
    billing::{Biller, BillingSettings},
    fault_injection,
    panel::Panel,
    period::Micros,
};

/// The prepaid policy on the fleet of one database.
#[derive(Debug)]
pub struct Prepaid {
    db: DatabaseConnection,
    panel: Panel,
    sql: Statements,
    rules: Rules,
    mode: Mode,
    billing_interval: Duration,
    /// Where events are sent.
    endpoints: Arc<[Endpoint]>,
    /// Knows the prices of instances that billing has not priced yet.
    biller: Biller,
    /// The end of the run of billing after which all organizations were checked last; the earliest time if there was no run.
    checked_run: Mutex<Option<Micros>>,
}

impl Prepaid {
    /// The policy for the database behind `db`, whose schema is `panel`, where billing runs at this interval.
    #[must_use]
    pub fn new(
        db: DatabaseConnection,
        panel: Panel,
        params: &PrepaidParams,
        billing_interval: Duration,
    ) -> Self {
        Self {
            biller: Biller::new(db.clone(), panel, BillingSettings::default()),
            db,
            panel,
            sql: Statements::of(panel),
            rules: params.rules(),
            mode: params.mode,
            billing_interval: fault_injection::billing_interval(billing_interval),
            endpoints: Arc::default(),
            checked_run: Mutex::new(None),
        }
    }

    /// With these endpoints for its events.
    #[must_use]
    pub fn with_endpoints(self, endpoints: Arc<[Endpoint]>) -> Self {
        Self { endpoints, ..self }
    }

    /// The rules that apply.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What the policy may do.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Reads the present facts of one organization; none if it neither exists nor has a standing.
    ///
    /// # Errors
    /// The database cannot be reached, or does not answer within a minute. Nothing is written, so a retry is harmless.
    pub async fn organization(&self, id: &str) -> Result<Option<Assessment>, DbErr> {
        let context = self.context(None).await?;
        let found = self.page(&context, &Selection::Listed(vec![id.to_owned()])).await?;
        Ok(found.into_iter().next())
    }

    /// Reads the present facts of all organizations, page by page, and calls `each` with every page.
    ///
    /// # Errors
    /// The database cannot be reached, or does not answer within a minute; pages that were passed on until then stay valid.
    pub async fn organizations(&self, mut each: impl FnMut(Vec<Assessment>)) -> Result<(), DbErr> {
        let context = self.context(None).await?;
        let mut after = String::new();
        loop {
            let page = self.page(&context, &Selection::All(after)).await?;
            let is_last = i64::try_from(page.len()).is_ok_and(|found| found < PAGE);
            after = page.last().map(|last| last.organization.clone()).unwrap_or_default();
            each(page);
            if is_last {
                return Ok(());
            }
        }
    }
}
