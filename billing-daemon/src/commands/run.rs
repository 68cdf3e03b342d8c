//! `run`: the daemon.

use super::{config, environment, log, reach, required};
use crate::{Plugins, cli::Common, exit::Failure, logging::LogOutput, runtime};

pub(super) async fn execute(common: &Common, plugins: &Plugins) -> Result<(), Failure> {
    let environment = environment(common)?;
    let config = config(common, plugins, &environment)?;
    let database = reach(common, required(config.daemon.database_url.clone())?, &config.daemon)?;
    log(common, LogOutput::Split, &config.daemon.log_filter, Some(&database))?;
    runtime::run(config, database, plugins).await
}
