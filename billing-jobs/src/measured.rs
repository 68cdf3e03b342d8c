//! What is counted of the database at work, through the facade `metrics`: without a recorder this does nothing.

use metrics::counter;

use crate::db::Fault;

/// Work that was refused because another daemon had claimed the job, by `job`.
pub const FENCING_REJECTIONS: &str = "billing_daemon_fencing_rejections_total";
/// Errors of the database, by what each of them `means`.
pub const DATABASE_ERRORS: &str = "billing_daemon_database_errors_total";

/// Work of a job was refused, because another daemon has claimed it since.
pub fn fenced_off(job: &str) {
    counter!(FENCING_REJECTIONS, "job" => job.to_owned()).increment(1);
}

/// The database failed.
pub fn failed(fault: Fault) {
    counter!(DATABASE_ERRORS, "class" => fault.as_str()).increment(1);
}
