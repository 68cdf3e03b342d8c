//! Runs jobs when they are due.

mod actions;
mod control_poll;
mod due_queue;
mod job_list;
mod jobs;
mod lease_cycle;
mod progress;
mod queue;
mod run;
mod run_once;
mod scheduled_job;
mod scheduler;
mod shared;
mod start;
mod start_gate;
mod starter;

pub(crate) use self::scheduler::QueueKinds;
pub use self::{
    jobs::{NewJob, SetupError},
    run_once::RunOnceError,
    scheduler::{DrainReport, Scheduler},
};
