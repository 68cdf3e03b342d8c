//! The engine that runs jobs: the scheduler and its parts.

mod control_poll;
mod due_queue;
mod executor;
mod lease_cycle;
mod progress;
mod scheduled_job;
mod scheduler;
mod shared;
mod start_gate;
mod starter;

pub use self::{
    executor::STOP_GRACE,
    scheduler::{DrainReport, Scheduler},
};
