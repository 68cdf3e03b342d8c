//! `run`: the daemon that runs the jobs.

use std::path::PathBuf;

use clap::Args;
use tracing::info;

use super::session::{Loaded, Session, start_log};
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
    // First, so that the file contains every failure of the start.
    if let Some(file) = &options.log_file {
        telemetry::to_file(file, common.log_format);
    }
    let session = Session::new(common, plugins)?;
    let daemon = &session.load()?.config.daemon;
    let url = session.require_url(daemon.database_url.clone())?;
    let database = session.verified_database(&url, daemon)?;
    let (environment, loaded) = session.into_loaded()?;
    let notice = loaded.built_in_notice();
    let Loaded { file, config } = loaded;
    let identity = Identity::from_process(config.billing_interval);
    let secrets = Concealed::new(database.url().secrets());
    let traces = Traces::of(&environment, &identity, &secrets);
    start_log(common, LogOutput::Split, &config.daemon.log_filter, &secrets, Some(&traces))?;
    if let Some(notice) = notice {
        info!("{notice}");
    }
    traces.announce();
    let result = runtime::run(config, Some(file), database, plugins, identity, secrets).await;
    traces.finish().await;
    result
}
