//! `check`: everything that is wrong, before anything runs.

use super::{
    complain, print,
    session::{Loaded, Session},
};
use crate::{
    commands::cli::Common, config::BUILT_IN, exit::Failure, output::line as say, plugins::Plugins,
    telemetry::otel,
};

pub(super) fn execute(common: &Common, plugins: &Plugins, print_defaults: bool) -> Result<(), Failure> {
    if print_defaults {
        print(BUILT_IN.as_bytes());
        return Ok(());
    }
    let session = Session::new(common, plugins)?;
    let Loaded { file, config } = session.load()?;
    let url = session.require_url(config.daemon.database_url.clone())?;
    session.verified_database(&url, &config.daemon)?;
    for warning in otel::outlook(&session.environment).err().into_iter().flatten() {
        complain(&format!("warning: {warning}"));
    }
    let names: Vec<&str> = config.jobs.iter().map(|(spec, _)| spec.name.as_str()).collect();
    let origin = if file.path().is_none() { " of the built-in defaults" } else { "" };
    say(format!("ok: {} jobs{origin} ({}) on {url}", names.len(), names.join(", ")));
    Ok(())
}
