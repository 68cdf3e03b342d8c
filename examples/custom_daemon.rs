//! The daemon with a plugin of our own: everything that `billing-daemon` does, and one kind of job more.

use std::process::ExitCode;

use async_trait::async_trait;
use billing_daemon::Plugins;
use billing_scheduler::{Job, JobContext, JobError, Outcome, Registry};
use serde::Deserialize;

/// The parameters, as `[job.params]` of jobs.toml gives them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    name: String,
}

struct Greet {
    params: Params,
}

#[async_trait]
impl Job for Greet {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        println!("hello {}, this is {}", self.params.name, ctx.occurrence);
        Ok(Outcome::done(1))
    }
}

/// The plugin: a function that makes its kinds known.
fn greetings(registry: &mut Registry) {
    registry.register("example.greet", |params: Params| Greet { params });
}

fn main() -> ExitCode {
    billing_daemon::main(&Plugins::none().with(greetings))
}
