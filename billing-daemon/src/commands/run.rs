//! `run`: the daemon.

use std::path::Path;

use super::{config_of, environment, existing_config_file, log, reach, required, source};
use crate::{
    Plugins,
    cli::Common,
    exit::Failure,
    logging::{self, LogOutput},
    runtime,
};

pub(super) async fn execute(
    common: &Common,
    plugins: &Plugins,
    log_file: Option<&Path>,
) -> Result<(), Failure> {
    // Before anything can go wrong that somebody should read there.
    if let Some(file) = log_file {
        logging::to_file(file, common.log_format);
    }
    let environment = environment(common)?;
    let source = source(&existing_config_file(common)?, plugins, &environment)?;
    let config = config_of(common, &source)?;
    let database = reach(common, required(config.daemon.database_url.clone())?, &config.daemon)?;
    log(common, LogOutput::Split, &config.daemon.log_filter, Some(&database))?;
    runtime::run(config, Some(source), database, plugins).await
}
