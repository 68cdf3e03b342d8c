//! What `adopt` and `release` share.

use billing_jobs::billing::HandoverError;

use crate::{
    exit::{Exit, Failure},
    output::{Left, Right, render_table, width},
};

pub(super) fn failed(error: HandoverError) -> Failure {
    match error {
        HandoverError::Busy { .. } | HandoverError::Alive { .. } => Failure::new(Exit::TryAgain, error),
        HandoverError::Database { doing, source } => Failure::database(doing, &source),
    }
}

/// Lines of three columns: what, how many, and details.
pub(super) fn table(rows: &[[String; 3]]) -> String {
    render_table([Left(""), Right(""), Left("")], rows, width())
}
