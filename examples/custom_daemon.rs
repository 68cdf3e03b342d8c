//! The daemon with a plugin: everything that `billing-daemon` does, and one more job kind.

use std::process::ExitCode;

use billing_daemon::Plugins;

fn main() -> ExitCode {
    billing_daemon::main(&Plugins::none().with(sweep_plugin::register))
}
