//! The daemon as a library: configuration, the SeaORM store, the runtime and the command line. `main.rs` is one call of
//! [`main`]; a daemon with plugins of its own is the same call with [`Plugins`].

mod commands;
pub mod config;
pub mod doctor;
mod escape;
pub mod exit;
mod holds;
pub mod host;
pub mod http;
mod output;
pub mod panel_database;
mod plugins;
pub mod runtime;
mod service_install;
mod service_manager;
pub mod status;
mod subjects;
pub mod telemetry;

use std::{process::ExitCode, time::Duration};

use clap::Parser;

use commands::cli;
pub use commands::cli::Cli;
pub use plugins::Plugins;

/// How long what is left of abandoned jobs may take to be dropped.
const BLOCKING_TASK_GRACE: Duration = Duration::from_secs(1);

/// The whole program: reads the command line and does what it says.
#[must_use]
pub fn main(plugins: &Plugins) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let usage = error.use_stderr();
            match cli::sanitized_error(&error, std::env::args().skip(1)) {
                Some(text) => commands::complain(text.trim_end()),
                // Nothing is left to tell anybody if not even this can be printed.
                None => drop(error.print()),
            }
            return if usage { exit::Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    #[cfg(windows)]
    if cli.is_service() {
        let plugins = plugins.clone();
        return service_manager::windows::serve(move || act(cli, &plugins)).unwrap_or_else(|error| {
            let message =
                format!("the service manager did not start this process: {error}; leave out --as-service");
            print_failure(&exit::Failure::new(exit::Exit::Usage, message)).into()
        });
    }
    act(cli, plugins).into()
}

/// Does what the command line says, and returns the exit code.
fn act(cli: Cli, plugins: &Plugins) -> u8 {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return print_failure(&exit::Failure::new(exit::Exit::Internal, format!("no runtime: {error}")));
        }
    };
    let result = runtime.block_on(commands::execute(cli, plugins));
    // A job that blocks its thread and does not stop was given its time; without this the process would wait for it.
    runtime.shutdown_timeout(BLOCKING_TASK_GRACE);
    result.map_or_else(|failure| print_failure(&failure), |()| 0)
}

fn print_failure(failure: &exit::Failure) -> u8 {
    if !failure.message.is_empty() {
        commands::complain(&failure.message);
    }
    failure.exit as u8
}
