//! `run`: the daemon.

use std::path::Path;

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

pub(super) async fn execute(
    common: &Common,
    plugins: &Plugins,
    log_file: Option<&Path>,
) -> Result<(), Failure> {
    // Before anything can go wrong that somebody should read there.
    if let Some(file) = log_file {
        telemetry::to_file(file, common.log_format);
    }
    let environment = environment(common)?;
    let source = source(common, plugins, &environment)?;
    let config = config_of(common, &source)?;
    let database = reach(common, &required(common, config.daemon.database_url.clone())?, &config.daemon)?;
    let identity = Identity::of_process(config.billing_interval_minutes);
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
