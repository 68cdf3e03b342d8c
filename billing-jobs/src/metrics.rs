//! Counters of database errors and rejections, through the facade `metrics`: without a recorder they do nothing.

use metrics::counter;

use billing_store::ErrorClass;

/// Work that was rejected because another daemon had claimed the job, by `job`.
pub const FENCING_REJECTIONS: &str = "billing_daemon_fencing_rejections_total";
/// Errors of the database, by `class`.
pub const DATABASE_ERRORS: &str = "billing_daemon_database_errors_total";

/// Counts work that was rejected because another daemon has claimed the job since.
pub fn fencing_rejected(job: &str) {
    counter!(FENCING_REJECTIONS, "job" => job.to_owned()).increment(1);
}

/// Counts an error of the database.
pub fn database_failed(class: ErrorClass) {
    counter!(DATABASE_ERRORS, "class" => class.as_str()).increment(1);
}
