//! The daemon with the jobs that ship.

use std::process::ExitCode;

fn main() -> ExitCode {
    billing_daemon::main(&billing_daemon::Plugins::none())
}
