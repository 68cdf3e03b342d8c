//! The tables as SeaORM entities: the panel's and ours, readable alike on PostgreSQL and SQLite. No behaviour.

pub mod billing_batches;
pub mod billing_charges;
pub mod billing_daemon_status;
pub mod billing_fences;
pub mod billing_holds;
pub mod billing_job_audit;
pub mod billing_job_pauses;
pub mod billing_job_requests;
pub mod billing_job_runs;
pub mod billing_job_state;
pub mod billing_meters;
pub mod billing_seen_rates;
pub mod billing_wallets;
pub mod organizations;
pub mod payment_transactions;
mod types;
pub mod users;
pub mod vps_billing_cycles;
pub mod vps_instances;
pub mod vps_plans;
pub mod wallets;

pub use types::{Hours, Id, Instant, Money};
