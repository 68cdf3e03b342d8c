//! `run`: the daemon.

use super::{config_of, environment, existing_config_file, log, reach, required, source};
use crate::{Plugins, cli::Common, exit::Failure, logging::LogOutput, runtime};

pub(super) async fn execute(common: &Common, plugins: &Plugins) -> Result<(), Failure> {
    let environment = environment(common)?;
    let source = source(&existing_config_file(common)?, plugins, &environment)?;
    let config = config_of(common, &source)?;
    let database = reach(common, required(config.daemon.database_url.clone())?, &config.daemon)?;
    log(common, LogOutput::Split, &config.daemon.log_filter, Some(&database))?;
    runtime::run(config, Some(source), database, plugins).await
}
