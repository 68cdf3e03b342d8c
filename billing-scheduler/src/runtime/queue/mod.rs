//! One-off jobs with a payload: the contract of their store, the decisions, and the worker that runs them.

mod decide;
mod enqueue;
mod store;
mod worker;

pub use self::{
    decide::{Settled, claim_limits, settle},
    enqueue::Enqueue,
    store::{NewQueuedJob, QueueNext, QueueResult, QueueStore, QueueTime, QueuedJob},
    worker::{Queue, QueueJob},
};
