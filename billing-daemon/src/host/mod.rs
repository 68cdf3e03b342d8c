//! The computer, the process and the operator.

pub mod identity;
pub(crate) mod open_files;
pub mod platform;

/// The name of the service, of its user and of its folders.
pub(crate) const SERVICE_NAME: &str = "billing-daemon";
