#![doc = include_str!("../README.md")]

pub mod audit_log;
pub mod columns;
mod connection;
mod connection_check;
mod connector;
mod control;
mod database;
mod database_url;
mod dialect;
mod error_class;
pub mod fault_injection;
pub mod migrations;
mod prune_runs;
pub mod queue;
mod rows;
mod server_list;
mod statements;
mod store;
mod sync;
mod transaction;

pub use self::{
    connection::{DedicatedConnection, SQLITE_LOG_PAGES, checkpoint, exclusive_writer},
    control::{
        OTHER_CLAIM, is_known_job, read_control_state, read_job, read_job_names, read_jobs, read_last_runs,
        read_runs, read_time, submit_request,
    },
    database::{ConnectError, Database, Pool, with_retry},
    database_url::{DatabaseUrl, DatabaseUrlError},
    error_class::{ErrorClass, GRANTS_PAGE, classify, code, job_error, with_help},
    prune_runs::PruneRuns,
    server_list::SessionTarget,
    store::{QueryFailed, SeaOrmStore},
    transaction::{
        SQLITE_NOW, StatementLimit, Transaction, begin, begin_command, begin_deferred, begin_read, execute,
        query_all, query_fleet, query_one, reading_within, statement, within,
    },
};
pub use migrations::migrate;
