//! `charges`: what was taken, and why.

mod explanation;

use super::{database, environment, log, quiet_filter};
use crate::{
    commands::cli::{Charges, Common},
    exit::Failure,
    output::{json as say_json, layout as say_lines},
    panel_database,
    plugins::Plugins,
    telemetry::LogOutput,
};

pub(super) async fn execute(common: &Common, plugins: &Plugins, action: Charges) -> Result<(), Failure> {
    let Charges::Explain { instance, at, json } = action;
    let environment = environment(common)?;
    let database = database(common, plugins, &environment)?;
    log(common, LogOutput::Stderr, &quiet_filter(&environment), Some(&database))?;
    let opened = panel_database::open_without_retry(&database).await?;
    let explanation = explanation::explain(&opened, &instance, at).await?;
    if json {
        say_json(&explanation);
    } else {
        say_lines(explanation::in_words(&explanation).trim_end());
    }
    Ok(())
}
