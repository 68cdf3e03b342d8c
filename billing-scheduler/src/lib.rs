#![doc = include_str!("../README.md")]

mod clock;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(feature = "runtime")]
mod due;
mod job;
#[cfg(feature = "runtime")]
mod memory;
mod registry;
#[cfg(feature = "runtime")]
mod schedule;
#[cfg(feature = "runtime")]
mod scheduler;
#[cfg(feature = "runtime")]
mod settle;
#[cfg(feature = "runtime")]
mod spec;
#[cfg(feature = "runtime")]
mod store;

pub use chrono;
pub use serde_json;

pub use clock::{Clock, ManualClock, SystemClock};
pub use job::{
    BoxError, FencingToken, Job, JobContext, JobError, Occurrence, Outcome, StopHandle, StopReason,
};
pub use registry::{BuildError, Registry};

#[cfg(feature = "runtime")]
pub use due::{Due, due};
#[cfg(feature = "runtime")]
pub use memory::MemoryStore;
#[cfg(feature = "runtime")]
pub use schedule::{Gap, Schedule, ScheduleError};
#[cfg(feature = "runtime")]
pub use scheduler::{DrainReport, Scheduler};
#[cfg(feature = "runtime")]
pub use settle::{Settled, settle};
#[cfg(feature = "runtime")]
pub use spec::{JobSpec, Misfire, Retry, Scope};
#[cfg(feature = "runtime")]
pub use store::{Claim, JobState, Lease, Retrying, RunRecord, RunStatus, Store, StoreError, Trigger};
