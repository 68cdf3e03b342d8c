//! What is counted of the database at work, through the facade `metrics`: without a recorder this does nothing.

use metrics::counter;

use billing_store::ErrorClass;

/// Work that was refused because another daemon had claimed the job, by `job`.
pub const FENCING_REJECTIONS: &str = "billing_daemon_fencing_rejections_total";
/// Errors of the database, by what each of them `means`.
pub const DATABASE_ERRORS: &str = "billing_daemon_database_errors_total";

/// Work of a job was refused, because another daemon has claimed it since.
pub fn fencing_rejected(job: &str) {
    counter!(FENCING_REJECTIONS, "job" => job.to_owned()).increment(1);
}

/// The database failed.
pub fn database_failed(class: ErrorClass) {
    counter!(DATABASE_ERRORS, "class" => class.as_str()).increment(1);
}
