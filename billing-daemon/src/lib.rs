//! The daemon as a library: configuration, runtime, HTTP API and command line. `main.rs` is one call of [`main`]; a daemon with
//! additional job kinds is the same call with [`Plugins`].

mod charges;
mod commands;
pub mod config;
#[cfg(feature = "console")]
mod console;
pub mod doctor;
mod escape;
pub mod exit;
mod format;
mod holds;
pub mod host;
pub mod http;
mod output;
pub mod panel_database;
mod plugins;
mod prepaid;
pub mod runtime;
mod service_install;
mod service_manager;
pub mod status;
mod subjects;
pub mod telemetry;

use std::{process::ExitCode, time::Duration};

use clap::Parser;

#[doc(hidden)]
pub use commands::PLANS as DEMO_PLANS;
use commands::cli;
pub use commands::cli::Cli;
#[cfg(feature = "console")]
#[doc(hidden)]
pub use console::{actions as console_actions, pages as console_pages};
pub use plugins::Plugins;

/// How long the process waits at its end for jobs that block a thread and were abandoned.
const BLOCKING_TASK_GRACE: Duration = Duration::from_secs(1);

/// The whole program: parses the command line and runs its command.
#[must_use]
pub fn main(plugins: &Plugins) -> ExitCode {
    if let Some(position) = cli::control_character(std::env::args_os().skip(1)) {
        let message = format!("argument {position} contains a control character");
        return print_failure(&exit::Failure::new(exit::Exit::Usage, message)).into();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let usage = error.use_stderr();
            match cli::sanitized_error(&error, std::env::args().skip(1)) {
                Some(text) => commands::complain(text.trim_end()),
                // There is no other stream to report on if even this cannot be printed.
                None => drop(error.print()),
            }
            return if usage { exit::Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    #[cfg(windows)]
    if cli.is_service() {
        let plugins = plugins.clone();
        return service_manager::windows::serve(move || run_command(cli, &plugins)).unwrap_or_else(|error| {
            let message = format!("cannot run as a service: {error}");
            let failure = exit::Failure::new(exit::Exit::Usage, message);
            print_failure(&failure.help("omit --as-service, which is for the service manager")).into()
        });
    }
    run_command(cli, plugins).into()
}

/// Runs the command and returns the exit code.
fn run_command(cli: Cli, plugins: &Plugins) -> u8 {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return print_failure(&exit::Failure::new(
                exit::Exit::Internal,
                format!("cannot start the runtime: {error}"),
            ));
        }
    };
    let result = runtime.block_on(commands::execute(cli, plugins));
    // Without a limit the process would wait for an abandoned job that blocks its thread.
    runtime.shutdown_timeout(BLOCKING_TASK_GRACE);
    result.map_or_else(|failure| print_failure(&failure), |()| 0)
}

fn print_failure(failure: &exit::Failure) -> u8 {
    if !failure.message.is_empty() {
        commands::print_error(failure);
    }
    failure.exit as u8
}
