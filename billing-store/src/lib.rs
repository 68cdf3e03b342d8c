#![doc = include_str!("../README.md")]

pub mod audit_log;
pub mod columns;
mod connection;
mod control;
mod database;
mod database_url;
mod dialect;
mod error_class;
pub mod fault_injection;
pub mod migrations;
mod rows;
mod statements;
mod store;
mod transaction;

pub use self::{
    connection::{DedicatedConnection, SQLITE_LOG_PAGES, checkpoint, exclusive_writer},
    control::{
        is_known_job, read_control_state, read_job, read_job_names, read_jobs, read_runs, submit_request,
    },
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
