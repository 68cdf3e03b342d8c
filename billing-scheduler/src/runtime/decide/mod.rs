//! What to do, and when: pure functions of a job's specification, its state and an instant.

pub(crate) mod config_diff;
mod due;
pub(crate) mod next_action;
mod outcome;
mod schedule;
mod spec;
pub(crate) mod stable_hash;

pub use self::{
    config_diff::{ConfigChanges, JobChange},
    due::{Due, SkipReason, Skipped, due},
    outcome::{AppliedOutcome, apply_outcome},
    schedule::{
        Cron, CronError, CronField, CronText, Daily, Dst, DstFold, DstGap, Every, IntoSchedule,
        LocalSchedule, Period, Schedule, ScheduleError, ScheduleGap, TimesOfDay, ZoneDifference, cron, daily,
        every,
    },
    spec::{JobSpec, Misfire, Retry, Scope},
};
