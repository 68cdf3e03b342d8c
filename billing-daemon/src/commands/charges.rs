//! `charges`: what was taken, and why.

use super::{database, environment, log, quiet_filter};
use crate::{
    Plugins,
    cli::{Charges, Common},
    exit::Failure,
    explain,
    logging::LogOutput,
    output::{json as say_json, layout as say_lines},
    runtime,
};

pub(super) async fn execute(common: &Common, plugins: &Plugins, action: Charges) -> Result<(), Failure> {
    let Charges::Explain { instance, at, json } = action;
    let environment = environment(common)?;
    let database = database(common, plugins, &environment)?;
    log(common, LogOutput::Stderr, &quiet_filter(&environment), Some(&database))?;
    let opened = runtime::open_at_once(&database).await?;
    let explanation = explain::explain(&opened, &instance, at).await?;
    if json {
        say_json(&explanation);
    } else {
        say_lines(explain::in_words(&explanation).trim_end());
    }
    Ok(())
}
