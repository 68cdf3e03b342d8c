//! Runs jobs when they are due.

mod actions;
mod control_poll;
mod due_queue;
mod events;
mod executor;
mod jobs;
mod lease_cycle;
mod progress;
mod run;
mod run_once;
mod scheduled_job;
mod scheduler;
mod shared;
mod start_gate;
mod starter;

pub(crate) use self::executor::{Executor, catch_unwind};
pub use self::{
    events::{Event, Events},
    executor::STOP_GRACE,
    jobs::{NewJob, SetupError},
    run_once::RunOnceError,
    scheduler::{DrainReport, Scheduler},
};
