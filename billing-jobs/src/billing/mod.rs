//! Billing: every due hour is charged once, batch by batch, each batch in one transaction under the fencing token.

mod approvals;
mod batch;
mod batch_sizing;
mod biller;
mod decide;
mod deleted;
mod error;
#[cfg(feature = "testing")]
mod faulty;
mod fencing;
mod findings;
mod fleet_run;
mod id;
mod job;
mod model;
mod panel_time;
mod post;
mod range;
mod read;
mod refusals;
mod run_context;
mod run_details;
mod seen_rates;
mod settings;
mod spend_limit;
mod spike;
pub mod spike_guard;
pub(crate) mod sql;
mod summary;
mod totals;
mod transaction;
mod transfer;

#[cfg(feature = "testing")]
use self::faulty::FaultyTransaction as BatchTransaction;
pub(crate) use self::sql::{Sections, is_amount, milliseconds};
#[cfg(not(feature = "testing"))]
use self::transaction::BatchTransaction;
pub use self::{
    approvals::{APPROVED_FOR, Scope, approve_catch_up, approve_catch_up_once},
    biller::Biller,
    error::{BillingError, CeilingExceeded},
    findings::{Findings, FindingsByKind},
    job::{Billing, BillingParams},
    run_details::{FirstSeenPrices, RunDetails, SpikeAmount},
    settings::{
        BeyondLimit, BillReport, BillingOptions, BillingSettings, FirstSeenPrice, Forecast, HAND_BACK_AFTER,
        Mode,
    },
    spike::{Excess, Spike},
    sql::micros,
    totals::{CurrencyTotals, Totals, TotalsByCurrency},
    transfer::{Adoption, HandoverError, PriceDifference, Release},
};
