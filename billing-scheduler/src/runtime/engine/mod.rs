//! Runs jobs when they are due.

mod actions;
mod control_poll;
mod due_queue;
mod executor;
mod lease_cycle;
mod progress;
mod run;
mod run_once;
mod scheduled_job;
mod scheduler;
mod shared;
mod start_gate;
mod starter;

pub use self::{
    executor::STOP_GRACE,
    run_once::RunOnceError,
    scheduler::{DrainReport, Scheduler},
};
