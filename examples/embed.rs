//! The scheduler inside an application, without a database: it runs a job each second, for three seconds.

use std::{error::Error, sync::Arc, time::Duration};

use async_trait::async_trait;
use billing_scheduler::{
    Job, JobContext, JobError, JobSpec, MemoryStore, Outcome, Registry, Schedule, Scheduler, SystemClock,
    serde_json::json,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Params {
    name: String,
}

struct Greet {
    params: Params,
}

#[async_trait]
impl Job for Greet {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        println!("hello {}, at {}", self.params.name, ctx.occurrence.scheduled_at);
        Ok(Outcome::done(1))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut registry = Registry::new();
    registry.register("example.greet", |params: Params| Greet { params });

    let clock = Arc::new(SystemClock);
    let store = MemoryStore::new(clock.clone());
    let spec = JobSpec::new("greet", "example.greet", Schedule::every(Duration::from_secs(1))?);
    let jobs = [(spec, json!({ "name": "Ada" }))];
    let scheduler = Scheduler::build(&registry, jobs, Arc::new(store.clone()), clock)?;

    let mut second = tokio::time::interval(Duration::from_secs(1));
    for _ in 0..4 {
        second.tick().await;
        scheduler.tick();
    }
    scheduler.drain(Duration::from_secs(5)).await;
    println!("{} runs in the history", store.runs().len());
    Ok(())
}
