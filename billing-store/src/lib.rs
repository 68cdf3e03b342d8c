//! The store of [`billing_scheduler`] for SeaORM: leases, cursors, control requests and the run history, on PostgreSQL and SQLite.
//!
//! [`migrate`] creates the tables, all of which begin with `scheduler_`. [`SeaOrmStore`] is the store that
//! `Scheduler::build` takes; several processes may share one database.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{sync::Arc, time::Duration};
//!
//! use billing_scheduler::{Registry, Scheduler, SystemClock};
//! use billing_store::{Database, Pool, SeaOrmStore};
//!
//! let database = Database::new("sqlite://jobs.db?mode=rwc".parse()?);
//! let pool = database.connect(Pool::Shared).await?;
//! billing_store::migrate(&pool).await?;
//! let clock = Arc::new(SystemClock);
//! let store = SeaOrmStore::new(pool, database, "host-1", Duration::from_secs(10), clock.clone());
//! let scheduler = Scheduler::build(&Registry::new(), [], Arc::new(store), clock)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Columns that other programs may read
//!
//! Names, types and meanings of these columns are part of the interface of this crate; others may change with any version.
//! Instants are `timestamptz` on PostgreSQL and microseconds since 1970 (UTC) on SQLite.
//!
//! | table | columns |
//! |---|---|
//! | `scheduler_jobs` | `job`, `fencing_token`, `holder`, `expires_at`, `cursor_at`, `last_error` |
//! | `scheduler_fencing` | `job`, `fencing_token`, `last_success_at`, `hand_back_after_seconds` |
//! | `scheduler_runs` | `id`, `job`, `scheduled_at`, `status`, `cause`, `attempt`, `fencing_token`, `daemon_id`, `started_at`, `finished_at`, `error`, `details` |
//! | `scheduler_audit_log` | all |

#[cfg(feature = "store")]
pub mod audit_log;
#[cfg(feature = "store")]
pub mod columns;
#[cfg(feature = "store")]
mod connection;
#[cfg(feature = "store")]
mod control;
#[cfg(feature = "store")]
mod database;
#[cfg(feature = "store")]
mod database_url;
#[cfg(feature = "store")]
mod dialect;
#[cfg(feature = "store")]
mod error_class;
#[cfg(feature = "store")]
pub mod fault_injection;
pub mod migrations;
#[cfg(feature = "store")]
mod rows;
#[cfg(feature = "store")]
mod statements;
#[cfg(feature = "store")]
mod store;
#[cfg(feature = "store")]
mod transaction;

#[cfg(feature = "store")]
pub use self::{
    connection::{DedicatedConnection, SQLITE_LOG_PAGES, checkpoint, exclusive_writer},
    control::{read_control_state, read_jobs, read_runs},
    database::{ConnectError, Database, Pool, with_retry},
    database_url::{DatabaseUrl, DatabaseUrlError},
    error_class::{ErrorClass, GRANTS_PAGE, classify, code, with_help},
    store::{QueryFailed, SeaOrmStore},
    transaction::{
        SQLITE_NOW, accept_any_text, begin, begin_deferred, begin_read, execute, query_all, query_one,
        statement,
    },
};
pub use migrations::migrate;
