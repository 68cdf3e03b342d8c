//! The control of jobs at run time, on a manual clock: no test waits for real time.

mod cancellation;
mod claimed_ahead;
mod clock_ahead;
#[path = "../common/intercepted.rs"]
mod intercepted;
mod late_jobs;
mod manual_runs;
mod pauses;
mod slow_answers;
mod store_clock;
mod support;
