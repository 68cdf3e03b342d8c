//! Requirements of tests that a host may lack.

use std::io::{self, Write as _};

/// Prints what is not tested here, and why. It fails nothing, since what is missing is a tool or a right on this host.
///
/// The test harness captures the output of a test that passes; this bypasses the capture.
pub fn skipped(what: &str) {
    // If standard error is closed, there is no reader.
    let _ = writeln!(io::stderr(), "SKIPPED: {what}");
}
