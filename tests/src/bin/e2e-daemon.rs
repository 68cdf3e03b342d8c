//! The daemon under test: the one that ships, with two kinds of jobs more that no customer needs.

use std::process::ExitCode;

use async_trait::async_trait;
use billing_daemon::Plugins;
use billing_scheduler::{Job, JobContext, JobError, Outcome, Registry};
use serde::Deserialize;
use tracing::info;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Says which occurrence it is.
struct Tick;

#[async_trait]
impl Job for Tick {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        info!("tick of {}", ctx.occurrence.scheduled_at);
        Ok(Outcome::done(1))
    }
}

/// Says that it began, and never ends, whoever asks.
struct Stubborn;

#[async_trait]
impl Job for Stubborn {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        info!("stubborn from now on");
        std::future::pending().await
    }
}

fn kinds(registry: &mut Registry) {
    registry.register("test.tick", |_: Nothing| Tick);
    registry.register("test.stubborn", |_: Nothing| Stubborn);
}

fn main() -> ExitCode {
    billing_daemon::main(&Plugins::none().with(kinds))
}
