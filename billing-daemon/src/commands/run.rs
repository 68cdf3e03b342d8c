//! `run`: the daemon that runs the jobs.

use std::path::PathBuf;

use clap::Args;
use tracing::info;

use super::session::{Loaded, Session};
use crate::{
    commands::cli::Common,
    exit::{Exit, Failure},
    host::identity::Identity,
    plugins::Plugins,
    runtime,
    telemetry::{self, mask::Concealed, otel::Traces},
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
    let secrets = Concealed::default();
    // First, so that the file contains every failure of the start.
    if let Some(file) = &options.log_file {
        telemetry::log_to_file(file, common.log_format, &secrets);
    }
    let session = Session::new(common, plugins)?;
    let daemon = &session.load()?.config.daemon;
    let url = session.require_url(daemon.database_url.clone())?;
    let database = session.verified_database(&url, daemon)?;
    let loaded = session.into_loaded()?;
    let notice = loaded.built_in_notice();
    let Loaded { file, config } = loaded;
    let identity = Identity::from_process(config.billing_interval);
    secrets.add(database.url().secrets());
    // The SDK logs warnings about its variables.
    let traces = telemetry::with_log(common.log_format, &secrets, || Traces::new(&identity, &secrets));
    telemetry::init_daemon(common.log_format, &config.daemon.log_filter, &secrets, traces.layer())
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot start the log: {error}")))?;
    if let Some(notice) = notice {
        info!("{notice}");
    }
    traces.log_destination();
    let result = runtime::run(config, Some(file), database, plugins, identity, secrets).await;
    traces.finish().await;
    result
}
