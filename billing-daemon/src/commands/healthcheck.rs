//! `healthcheck`: the probe of a container's runtime. It needs neither HTTP nor the configuration nor the database.

use std::time::Duration;

use billing_scheduler::duration::{self, format_rounded};
use clap::Args;

use crate::{
    exit::{Exit, Failure},
    output::line as say,
    service_manager::liveness::{self, LIVENESS_FILE, Liveness},
};

#[derive(Debug, Args)]
pub(crate) struct HealthcheckArgs {
    /// How long the daemon may make no progress [default: 60s]
    #[arg(
        long, value_name = "DURATION", default_value = "60s", hide_default_value = true,
        value_parser = duration::parse
    )]
    max_age: Duration,
}

pub(super) fn execute(options: &HealthcheckArgs) -> Result<(), Failure> {
    let liveness = liveness::read(options.max_age)
        .map_err(|error| Failure::new(Exit::Negative, format!("cannot read the liveness file: {error}")))?;
    let unhealthy = |message: String| Failure::new(Exit::Negative, message);
    match liveness {
        Some(Liveness::Alive(age)) => {
            say(format!("alive: the scheduler made progress {} ago", format_rounded(age)));
            Ok(())
        }
        Some(Liveness::Hangs(age)) => {
            let age = format_rounded(age);
            Err(unhealthy(format!("the daemon hangs: its scheduler made no progress for {age}")))
        }
        Some(Liveness::Stopped(path)) => {
            Err(unhealthy(format!("no daemon runs here: {} does not exist", path.display()))
                .help("if a daemon runs, its log contains the reason why it could not create this file"))
        }
        None => Err(Failure::new(Exit::Configuration, format!("{LIVENESS_FILE} is not set"))
            .help("set it to the same path for `run` and for `healthcheck`")
            .help("`status` reports whether billing works, from any host")),
    }
}
