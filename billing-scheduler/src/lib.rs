#![doc = include_str!("../README.md")]
#![cfg_attr(
    not(feature = "runtime"),
    allow(rustdoc::broken_intra_doc_links, reason = "the front page shows the runtime, too")
)]

#[cfg(feature = "runtime")]
mod agenda;
mod blocking;
#[cfg(feature = "runtime")]
mod burst;
#[cfg(feature = "runtime")]
mod chance;
mod clock;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(feature = "runtime")]
mod control;
#[cfg(feature = "runtime")]
mod due;
pub mod duration;
#[cfg(feature = "runtime")]
mod guard;
mod job;
mod mask;
#[cfg(feature = "runtime")]
mod memory;
#[cfg(feature = "runtime")]
mod middleware;
mod registry;
#[cfg(feature = "runtime")]
mod reload;
#[cfg(feature = "runtime")]
mod schedule;
#[cfg(feature = "runtime")]
mod scheduler;
#[cfg(feature = "runtime")]
mod settle;
#[cfg(feature = "runtime")]
mod spec;
#[cfg(feature = "runtime")]
mod step;
#[cfg(feature = "runtime")]
mod store;
#[cfg(feature = "runtime")]
mod trace;

pub use chrono;
pub use serde_json;

pub use blocking::BlockingJob;
pub use clock::{Clock, ManualClock, SystemClock};
pub use job::{
    BoxError, FencingToken, Job, JobContext, JobError, Occurrence, Outcome, StopHandle, StopReason,
};
pub use mask::{MASK, Mask};
pub use registry::{BuildError, Registry, Remark, Severity};

#[cfg(feature = "runtime")]
pub use control::{
    Ahead, Control, Holder, JobRow, Late, NOT_AHEAD, Pause, Receipt, Request, RunFilter, RunRow, What, Wishes,
};
#[cfg(feature = "runtime")]
pub use due::{Due, SkipReason, Skipped, due};
#[cfg(feature = "runtime")]
pub use guard::STOP_GRACE;
#[cfg(feature = "runtime")]
pub use memory::MemoryStore;
#[cfg(feature = "runtime")]
pub use middleware::{Middleware, Next};
#[cfg(feature = "runtime")]
pub use reload::{Change, Changes};
#[cfg(feature = "runtime")]
pub use schedule::{
    CronError, CronField, Dst, DstFold, DstGap, Gap, Schedule, ScheduleError, ZoneDifference,
};
#[cfg(feature = "runtime")]
pub use scheduler::{DrainReport, Scheduler};
#[cfg(feature = "runtime")]
pub use settle::{Settled, settle};
#[cfg(feature = "runtime")]
pub use spec::{JobSpec, Misfire, Retry, Scope};
#[cfg(feature = "runtime")]
pub use store::{
    Claim, JobState, Lease, Plan, Retrying, RunRecord, RunStatus, Store, StoreError, Stretch, Trigger,
};
#[cfg(feature = "runtime")]
pub use trace::Tracing;
