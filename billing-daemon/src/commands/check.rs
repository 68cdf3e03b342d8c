//! `check`: lists every mistake in the configuration before anything runs.

use super::{
    print,
    session::{Loaded, Session},
    warn_of,
};
use crate::{
    commands::cli::Common, config::BUILT_IN, exit::Failure, format::count, output::line as say,
    plugins::Plugins, telemetry::otel,
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
    if let Err(warning) = otel::describe_destination() {
        warn_of(&warning);
    }
    let names: Vec<&str> = config.jobs.iter().map(|(spec, _)| spec.name.as_str()).collect();
    let origin = if file.path().is_none() { " of the built-in defaults" } else { "" };
    say(format!("ok: {}{origin} ({}) on {url}", count(names.len() as u64, "job"), names.join(", ")));
    Ok(())
}
