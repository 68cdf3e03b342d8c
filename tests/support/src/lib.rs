//! Gives each end-to-end test a separate database, of every kind that the daemon supports, with a small fleet in it.
//!
//! A check is written once and listed in the macro that selects its databases:
//!
//! ```no_run
//! use billing_test_support::{Db, Fleet, on_every_database};
//!
//! async fn top_up_raises_balance(db: &Db) {
//!     let fleet = Fleet::new(db);
//!     let org = fleet.wallet("1.00").await;
//!     fleet.top_up(org, "0.50").await;
//!     assert_eq!(fleet.balance(org).await, 15_000);
//! }
//!
//! on_every_database!(top_up_raises_balance);
//! # fn main() {}
//! ```
//!
//! | macro | variants |
//! |---|---|
//! | [`on_every_engine!`] | `sqlite`, `postgres` |
//! | [`on_every_panel!`] | `g1_owner`, `g1_role`, `g2_owner`, `g2_role`, `g3_owner`, `g3_role` |
//! | [`on_every_database!`] | all of these |
//!
//! `cargo run -p billing-tools -- scratch-database g3` keeps such a database open for experiments.

#![expect(clippy::missing_panics_doc, reason = "the harness panics to fail the test that called it")]

pub mod db;
pub mod hanging_mount;
mod installation;
mod ledger;
pub mod limited_disk;
pub mod manager;
pub mod panel;
pub mod panel_biller;
pub mod pooler;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod query_accounting;
pub mod receivers;
mod requirements;
pub mod rows;
pub mod seed;
pub mod sqlite;

pub use db::{Db, connect, migrate};
pub use hanging_mount::HangingMount;
pub use installation::{find_faketime, postgres_command, run_unprivileged};
pub use limited_disk::LimitedDisk;
pub use panel::{BILLING_ROLE, Login, OWNER_ROLE, Panel, READING_ROLE};
pub use pooler::Pooler;
pub use postgres::{Database, Postgres, operations};
pub use process::{Ended, Program, Running, eventually};
pub use proxy::FreezingProxy;
pub use receivers::{Mail, MailServer, Received, Reply, WebhookReceiver};
pub use requirements::skipped;
pub use rows::{ChargeRow, CycleRow, HoldRow, LedgerRow};
pub use seed::{Amount, Fleet, Instance, Plan};
pub use sqlite::Sqlite;
