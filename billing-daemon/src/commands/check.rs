//! `check`: everything that is wrong, before anything runs.

use super::{complain, config, environment, reach, required, say};
use crate::{Plugins, cli::Common, exit::Failure, traces};

pub(super) fn execute(common: &Common, plugins: &Plugins) -> Result<(), Failure> {
    let environment = environment(common)?;
    let config = config(common, plugins, &environment)?;
    let url = required(config.daemon.database_url.clone())?;
    reach(common, url.clone(), &config.daemon)?;
    for warning in traces::outlook(&environment).err().into_iter().flatten() {
        complain(&format!("warning: {warning}"));
    }
    let names: Vec<&str> = config.jobs.iter().map(|(spec, _)| spec.name.as_str()).collect();
    say(format!("ok: {} jobs ({}) on {url}", names.len(), names.join(", ")));
    Ok(())
}
