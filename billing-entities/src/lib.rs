#![doc = include_str!("../README.md")]
#![expect(missing_docs, reason = "a column with an unambiguous name needs no documentation")]

pub mod billing_batches;
pub mod billing_charges;
pub mod billing_daemon_status;
pub mod billing_deliveries;
pub mod billing_events;
pub mod billing_holds;
pub mod billing_meters;
pub mod billing_notices;
pub mod billing_policies;
pub mod billing_seen_rates;
pub mod billing_standings;
pub mod billing_wallet_openings;
pub mod organizations;
pub mod payment_transactions;
pub mod scheduler_audit_log;
pub mod scheduler_fencing;
pub mod scheduler_jobs;
pub mod scheduler_pauses;
pub mod scheduler_queue;
pub mod scheduler_requests;
pub mod scheduler_runs;
mod types;
pub mod users;
pub mod vps_billing_cycles;
pub mod vps_instances;
pub mod vps_plans;
pub mod wallets;

pub use types::{Hours, Id, Instant, Money};
