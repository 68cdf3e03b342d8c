//! `status`: how billing stands; a check for monitoring.

use super::{built_in_notice, complain, config_of, database, environment, log, quiet_filter, source, width};
use crate::{
    commands::{args::JsonArgs, cli::Common},
    exit::{Exit, Failure},
    output::{json as say_json, layout as say_lines},
    panel_database,
    plugins::Plugins,
    status::{self, Expected},
    telemetry::LogOutput,
};

pub(super) async fn execute(common: &Common, plugins: &Plugins, format: JsonArgs) -> Result<(), Failure> {
    let environment = environment(common)?;
    let source = source(common, plugins, &environment)?;
    let config = config_of(common, &source)?;
    if source.path().is_none() {
        complain(&built_in_notice(&config));
    }
    let expected = Expected::from(&config);
    let database = database(common, plugins, &environment)?;
    log(common, LogOutput::Stderr, &quiet_filter(&environment), Some(&database))?;
    let opened = panel_database::open_without_retry(&database).await?;
    let status = status::read(&opened, &expected).await?;
    if format.json {
        say_json(&(status));
    } else {
        say_lines(status::in_words(&status, width()).trim_end());
    }
    if status.ok { Ok(()) } else { Err(Failure::silent(Exit::Negative)) }
}
