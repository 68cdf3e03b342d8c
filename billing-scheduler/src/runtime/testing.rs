//! A scheduler in virtual time, for the tests of an application's jobs.

use std::{ops::Deref, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    builder::SchedulerBuilder,
    engine::{Scheduler, SetupError},
    memory_store::MemoryStore,
    store::{RunRecord, RunStatus},
};
use crate::clock::{Clock, ManualClock};

/// Runs everything that is due now by the scheduler's clock, scheduled and queued jobs, and returns when the runs have ended.
///
/// A job must not wait for a manual clock meanwhile: no test moves it.
///
/// ```
/// use billing_scheduler::{ManualClock, Scheduler, every, run_due};
/// # use billing_scheduler::{BoxError, chrono::DateTime};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let clock = ManualClock::at(DateTime::UNIX_EPOCH);
/// let builder = Scheduler::builder().clock(clock.clone());
/// let scheduler = builder.job("greet", every("10s"), |_| async { println!("hello") }).build()?;
/// run_due(&scheduler).await;
/// clock.advance(std::time::Duration::from_secs(10));
/// run_due(&scheduler).await;
/// # Ok(())
/// # }
/// ```
pub async fn run_due(scheduler: &Scheduler) {
    loop {
        scheduler.tick();
        scheduler.idle().await;
        if scheduler.run_queued().await == 0 {
            return;
        }
    }
}

/// A scheduler whose time passes only in [`TestScheduler::advance`], with a store in memory. It is a [`Scheduler`].
///
/// A month of a daily job takes milliseconds:
///
/// ```
/// use std::time::Duration;
///
/// use billing_scheduler::{Scheduler, TestScheduler, chrono::{DateTime, Utc}, daily};
/// # use billing_scheduler::BoxError;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let report = daily().at("02:30").timezone("Europe/Berlin");
/// let builder = Scheduler::builder().job("report", report, |_| async {});
/// let test = TestScheduler::new("2026-03-01T00:00:00Z".parse()?, builder)?;
/// test.advance(Duration::from_hours(31 * 24)).await;
/// test.assert_ran("report", 31);
/// // On the 29th, clocks went from 02:00 to 03:00: the run of 02:30 started at 03:00, which is 01:00 UTC.
/// assert_eq!(test.runs("report")[28].scheduled_at, "2026-03-29T01:00:00Z".parse::<DateTime<Utc>>()?);
/// # Ok(())
/// # }
/// ```
///
/// A job that fails twice, with its retries:
///
/// ```
/// # use std::time::Duration;
/// # use billing_scheduler::{BoxError, RunStatus, Scheduler, TestScheduler, every};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let builder = Scheduler::builder().job("sync", every("1h"), |ctx| async move {
///     if ctx.attempt < 3 { Err("no connection") } else { Ok(()) }
/// });
/// let test = TestScheduler::new("2026-01-05T11:59:00Z".parse()?, builder)?;
/// test.advance(Duration::from_mins(10)).await;
/// let statuses: Vec<_> = test.runs("sync").iter().map(|run| run.status).collect();
/// assert_eq!(statuses, [RunStatus::Retrying, RunStatus::Retrying, RunStatus::Done]);
/// test.assert_ran("sync", 1);
/// # Ok(())
/// # }
/// ```
pub struct TestScheduler {
    scheduler: Scheduler,
    clock: ManualClock,
    store: MemoryStore,
}

impl TestScheduler {
    /// Builds a scheduler at `start`. The store and the clock of `builder` are replaced.
    ///
    /// # Errors
    /// A job is invalid.
    pub fn new(start: DateTime<Utc>, builder: SchedulerBuilder) -> Result<Self, SetupError> {
        let clock = ManualClock::at(start);
        let store = MemoryStore::new(Arc::new(clock.clone()));
        let scheduler = builder.clock(clock.clone()).store(store.clone()).build()?;
        Ok(Self { scheduler, clock, store })
    }

    /// Lets `duration` pass, from one wake-up of a job to the next, and runs what is due.
    pub async fn advance(&self, duration: Duration) {
        let end = self.clock.now() + duration;
        run_due(&self.scheduler).await;
        while let Ok(left) = (end - self.clock.now()).to_std()
            && !left.is_zero()
        {
            let next = [self.scheduler.next_wakeup(), self.store.next_queued()].into_iter().flatten().min();
            let next = next.map_or(TimeDelta::MAX, |next| next - self.clock.now());
            // A job that could not start yet is tried again a second later.
            let step = next.to_std().ok().filter(|step| !step.is_zero()).unwrap_or(Duration::from_secs(1));
            self.clock.advance(step.min(left));
            run_due(&self.scheduler).await;
        }
    }

    /// Returns the clock, to set the wall clock as an administrator would.
    #[must_use]
    pub fn manual_clock(&self) -> &ManualClock {
        &self.clock
    }

    /// Returns the history of a job, oldest first: attempts, and scheduled times without a run.
    #[must_use]
    pub fn runs(&self, job: &str) -> Vec<RunRecord> {
        self.store.runs().into_iter().filter(|run| run.job == job).collect()
    }

    /// Checks how many runs of a job finished.
    ///
    /// # Panics
    /// If it is another number. The message lists the history of the job.
    #[track_caller]
    pub fn assert_ran(&self, job: &str, times: usize) {
        let runs = self.runs(job);
        let done = runs.iter().filter(|run| run.status == RunStatus::Done).count();
        let line = |run: &RunRecord| {
            let error = run.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
            format!("\n  {} {}{error}", run.scheduled_at.format("%Y-%m-%dT%H:%M:%SZ"), run.status.as_str())
        };
        let history: String = runs.iter().map(line).collect();
        assert!(done == times, "job `{job}` finished {done} times instead of {times}{history}");
    }
}

impl Deref for TestScheduler {
    type Target = Scheduler;

    fn deref(&self) -> &Scheduler {
        &self.scheduler
    }
}

impl std::fmt::Debug for TestScheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestScheduler").field("clock", &self.clock).finish_non_exhaustive()
    }
}
