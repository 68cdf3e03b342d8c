//! `status`: how billing stands; a check for monitoring.

use super::{complain, config_file, config_from, database, environment, log, quiet_filter, say, width};
use crate::{
    Plugins,
    cli::Common,
    exit::{Exit, Failure},
    logging::LogOutput,
    runtime,
    status::{self, Expected},
};

pub(super) async fn execute(common: &Common, plugins: &Plugins, json: bool) -> Result<(), Failure> {
    let environment = environment(common)?;
    let expected = if let Some(path) = config_file(common) {
        Expected::from(&config_from(common, &path, plugins, &environment)?)
    } else {
        complain("without a jobs.toml, nobody can tell which jobs are late: name one with --config");
        Expected::default()
    };
    let database = database(common, plugins, &environment)?;
    log(common, LogOutput::Stderr, &quiet_filter(&environment)?, Some(&database))?;
    let opened = runtime::open_at_once(&database).await?;
    let status = status::read(&opened, &expected).await?;
    if json {
        say(serde_json::to_string(&status).expect("text and numbers are always JSON"));
    } else {
        say(status::in_words(&status, width()).trim_end());
    }
    if status.ok { Ok(()) } else { Err(Failure::silent(Exit::Negative)) }
}
