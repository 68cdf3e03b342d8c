//! One-off jobs with a payload: what may be run, the decisions, and the worker that runs them.

mod claims;
mod decide;
mod due_times;
mod enqueue;
mod kind;
mod run;
#[cfg(test)]
mod tests;
mod worker;

pub use self::{
    decide::{Settled, claim_limits, settle},
    enqueue::{Enqueue, EnqueueError},
    kind::QueueJob,
};
pub(crate) use self::{enqueue::enqueue_all, worker::Queue};
