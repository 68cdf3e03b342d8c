//! What cannot be tried on this machine.

use std::io::{self, Write as _};

/// Says what nobody tries here, and why. It fails nothing, since what is missing is a tool or a right of this machine.
///
/// The test harness keeps to itself what a test prints that passes; this is written past it.
pub fn skipped(what: &str) {
    // Whoever closed our standard error does not want to hear it.
    let _ = writeln!(io::stderr(), "SKIPPED: {what}");
}
