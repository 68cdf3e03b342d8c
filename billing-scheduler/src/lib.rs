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
mod function;
mod job;
mod mask;
mod registry;
#[cfg(feature = "runtime")]
mod runtime;

pub use async_trait::async_trait;
pub use chrono;
pub use serde_json;

pub use blocking::BlockingJob;
pub use clock::{Clock, ManualClock, SystemClock};
pub use function::IntoOutcome;
pub use job::{
    BoxError, FencingToken, Job, JobContext, JobError, Occurrence, Outcome, StopHandle, StopReason,
};
pub use mask::{MASK, Mask};
pub use registry::{BuildError, Registry, Remark, Severity};
#[cfg(feature = "signals")]
pub use runtime::signals::{ShutdownSignal, Signals};
#[cfg(feature = "runtime")]
pub use runtime::{
    builder::SchedulerBuilder,
    control::Control,
    decide::{
        AppliedOutcome, ConfigChanges, Cron, CronError, CronField, CronText, Daily, Dst, DstFold, DstGap,
        Due, Every, IntoSchedule, JobChange, JobSpec, LocalSchedule, Misfire, Period, Retry, Schedule,
        ScheduleError, ScheduleGap, Scope, SkipReason, Skipped, TimesOfDay, ZoneDifference, apply_outcome,
        cron, daily, due, every,
    },
    engine::{DrainReport, NewJob, RunOnceError, Scheduler, SetupError},
    events::{Event, Events},
    executor::STOP_GRACE,
    memory_store::MemoryStore,
    middleware::{Middleware, Next},
    queue::{Enqueue, EnqueueError, QueueJob, Settled, claim_limits, settle},
    running::{LeaseRenewal, RunningScheduler},
    spans::Tracing,
    store::{
        Claim, ClaimHint, ControlAction, ControlReceipt, ControlRequest, ControlState, Holder, JobRow,
        JobState, LateJob, Lease, NOT_AHEAD, NewQueuedJob, OccurrenceRange, Pause, QueueNext, QueueResult,
        QueueStore, QueueTime, QueuedJob, ReplacedSchedule, Retrying, RunCause, RunFilter, RunRecord, RunRow,
        RunStatus, ScheduleAhead, Store, StoreError, StorePoll,
    },
    store_clock::StoreClock,
    testing::{TestScheduler, run_due},
};
