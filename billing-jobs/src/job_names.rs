//! The names of the jobs that other modules refer to.

/// The name of the billing job and of its kind: its lease protects the one ledger of a database, so there is one such job.
pub const BILLING_JOB: &str = "billing";

/// The kind of the job that audits.
pub const AUDIT_KIND: &str = "audit";

/// The kind of the job that checks the runway of wallets.
pub const PREPAID_KIND: &str = "prepaid";

/// The kind of the job that sends the events of the prepaid policy.
pub const DELIVER_KIND: &str = "deliver";
