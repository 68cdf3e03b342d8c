//! What cannot be tried on this machine.

use std::io::{self, Write as _};

/// Prints what is not tested here, and why. It fails nothing, since what is missing is a tool or a right on this host.
///
/// The test harness keeps to itself what a test prints that passes; this is written past it.
pub fn skipped(what: &str) {
    // If standard error is closed, there is no reader.
    let _ = writeln!(io::stderr(), "SKIPPED: {what}");
}
