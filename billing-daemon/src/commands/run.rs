//! `run`: the daemon.

use std::path::PathBuf;

use clap::Args;
use tracing::info;

use super::{built_in_notice, config_of, environment, log_without, reach, required, source};
use crate::{
    commands::cli::Common,
    exit::Failure,
    host::identity::Identity,
    plugins::Plugins,
    runtime,
    telemetry::{self, LogOutput, concealed::Concealed, otel::Traces},
};

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Log to this file instead of the standard streams; it is rotated at 10 MiB, and nine old files are kept
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Report to the service manager of Windows, which started this process
    #[cfg(windows)]
    #[arg(long, hide = true)]
    pub(crate) as_service: bool,
}

pub(super) async fn execute(common: &Common, plugins: &Plugins, options: &RunArgs) -> Result<(), Failure> {
    // Before anything can go wrong that somebody should read there.
    if let Some(file) = &options.log_file {
        telemetry::to_file(file, common.log_format);
    }
    let environment = environment(common)?;
    let source = source(common, plugins, &environment)?;
    let config = config_of(common, &source)?;
    let database = reach(common, &required(common, config.daemon.database_url.clone())?, &config.daemon)?;
    let identity = Identity::from_process(config.billing_interval);
    let secrets = Concealed::new(database.url().secrets());
    let traces = Traces::of(&environment, &identity, &secrets);
    log_without(common, LogOutput::Split, &config.daemon.log_filter, &secrets, Some(&traces))?;
    if source.path().is_none() {
        info!("{}", built_in_notice(&config));
    }
    traces.announce();
    let result = runtime::run(config, Some(source), database, plugins, identity, secrets).await;
    traces.finish().await;
    result
}
