#![doc = include_str!("../README.md")]
#![cfg_attr(
    not(feature = "runtime"),
    allow(rustdoc::broken_intra_doc_links, reason = "the front page shows the runtime, too")
)]

mod blocking;
mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod duration;
mod job;
mod mask;
mod registry;
#[cfg(feature = "runtime")]
mod runtime;

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
pub use runtime::{
    control::Control,
    decide::{
        AppliedOutcome, ConfigChanges, CronError, CronField, Dst, DstFold, DstGap, Due, JobChange, JobSpec,
        Misfire, Retry, Schedule, ScheduleError, ScheduleGap, Scope, SkipReason, Skipped, ZoneDifference,
        apply_outcome, due,
    },
    engine::{DrainReport, RunOnceError, STOP_GRACE, Scheduler},
    memory_store::MemoryStore,
    middleware::{Middleware, Next},
    spans::Tracing,
    store::{
        Claim, ClaimHint, ControlAction, ControlReceipt, ControlRequest, ControlState, Holder, JobRow,
        JobState, LateJob, Lease, NOT_AHEAD, OccurrenceRange, Pause, Retrying, RunCause, RunFilter,
        RunRecord, RunRow, RunStatus, ScheduleAhead, Store, StoreError,
    },
};
