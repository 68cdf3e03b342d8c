//! The front door: a scheduler from jobs written in the program, with defaults for everything else.

use std::{fmt, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;

use super::{
    decide::IntoSchedule,
    engine::{NewJob, QueueKinds, Scheduler, SetupError},
    memory_store::MemoryStore,
    middleware::Middleware,
    queue::QueueJob,
    running::RunningScheduler,
    store::Store,
};
use crate::{
    clock::{Clock, SystemClock},
    function::IntoOutcome,
    job::JobContext,
    registry::Registry,
};

/// The number of runs that the default store keeps in its history.
const HISTORY: usize = 10_000;

/// Collects the jobs of a scheduler: see [`Scheduler::builder`].
#[must_use]
pub struct SchedulerBuilder {
    kinds: Registry,
    jobs: Vec<NewJob>,
    queue: QueueKinds,
    store: Option<Arc<dyn Store>>,
    clock: Arc<dyn Clock>,
}

impl Scheduler {
    /// Returns a builder without jobs, on the clock of this host, and with a store in memory that keeps the newest 10,000 runs.
    ///
    /// ```no_run
    /// use billing_scheduler::{BoxError, JobContext, Scheduler, cron, every};
    ///
    /// async fn send_report(ctx: JobContext) -> Result<(), std::io::Error> {
    ///     std::fs::write("report", ctx.occurrence.to_string())
    /// }
    ///
    /// #[tokio::main]
    /// async fn main() -> Result<(), BoxError> {
    ///     let scheduler = Scheduler::builder()
    ///         .job("greet", every("10s"), |ctx| async move { println!("{}", ctx.occurrence) })
    ///         .job("report", cron("30 2 * * *").timezone("Europe/Berlin"), send_report)
    ///         .start()?;
    ///     scheduler.run_until(tokio::time::sleep(std::time::Duration::from_secs(60))).await;
    ///     Ok(())
    /// }
    /// ```
    pub fn builder() -> SchedulerBuilder {
        SchedulerBuilder {
            kinds: Registry::new(),
            jobs: Vec::new(),
            queue: QueueKinds::default(),
            store: None,
            clock: Arc::new(SystemClock),
        }
    }
}

impl SchedulerBuilder {
    /// Adds a job that calls an async function or closure. State is captured by the closure, which clones it for each run: `move |_| { let
    /// db = db.clone(); async move { .. } }`. An `async move |_| ..` closure with state does not implement [`Fn`].
    pub fn job<F, R>(self, name: impl Into<String>, schedule: impl IntoSchedule, run: F) -> Self
    where
        F: Fn(JobContext) -> R + Send + Sync + 'static,
        R: Future<Output: IntoOutcome> + Send + 'static,
    {
        self.with_job(NewJob::new(name, schedule, run))
    }

    /// Adds a job with its own settings, of a type that implements [`Job`](crate::Job), or of a registered kind.
    pub fn with_job(mut self, job: NewJob) -> Self {
        self.jobs.push(job);
        self
    }

    /// Runs the queued jobs of a kind with an async function or closure, which gets the decoded payload. Up to ten run at once.
    ///
    /// A job whose process ends before the result is recorded runs again, as its next attempt. So its code is idempotent, or commits
    /// its changes together with the end of the job, as `billing_store::queue::finish_in` does.
    ///
    /// ```
    /// use billing_scheduler::{BoxError, JobContext, Scheduler};
    ///
    /// async fn send_mail(_: JobContext, to: String) -> Result<(), BoxError> {
    ///     println!("to {to}");
    ///     Ok(())
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let scheduler = Scheduler::builder().queue_job("mail", send_mail).start()?;
    /// scheduler.enqueue("mail", "ada@example.org").await?;
    /// # scheduler.run_until(async {}).await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn queue_job<P, F, R>(self, kind: impl Into<String>, run: F) -> Self
    where
        P: DeserializeOwned + Send + 'static,
        F: Fn(JobContext, P) -> R + Send + Sync + 'static,
        R: Future<Output: IntoOutcome> + Send + 'static,
    {
        self.with_queue_job(QueueJob::new(kind, run))
    }

    /// Runs the queued jobs of a kind with its own limits, or of a type that implements [`Job`](crate::Job).
    pub fn with_queue_job(mut self, job: QueueJob) -> Self {
        self.queue.kinds.push(job);
        self
    }

    /// Sets how long finished queued jobs are kept; a day by default. As long as a job is kept, its id cannot be added again.
    pub fn queue_retention(mut self, retention: Duration) -> Self {
        self.queue.retention = retention;
        self
    }

    /// Registers job kinds, for [`NewJob::of_kind`]: `register` is the function of a plugin, or a closure.
    pub fn kinds(mut self, register: impl FnOnce(&mut Registry)) -> Self {
        register(&mut self.kinds);
        self
    }

    /// Wraps each run of each job, scheduled or queued. The first middleware is the outermost.
    pub fn layer(mut self, middleware: impl Middleware) -> Self {
        self.kinds.layer(middleware);
        self
    }

    /// Replaces the store in memory.
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// Replaces the clock of this host, for tests.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Builds a scheduler that nothing ticks, for tests and for applications with their own timer. It adds queued jobs, and only
    /// [`run_due`](crate::run_due) runs them.
    ///
    /// # Errors
    /// A job is invalid; the error names it.
    pub fn build(self) -> Result<Scheduler, SetupError> {
        let Self { kinds, jobs, queue, store, clock } = self;
        let store = store.unwrap_or_else(|| {
            Arc::new(MemoryStore::new(Arc::clone(&clock)).with_history_limit(HISTORY)) as Arc<dyn Store>
        });
        Scheduler::from_jobs(kinds, jobs, queue, store, clock)
    }

    /// Builds the scheduler and starts it: a task of this runtime ticks it, another one runs queued jobs if there are kinds of them, and
    /// a thread renews leases.
    ///
    /// # Errors
    /// A job is invalid, which the error names, or the thread cannot be started.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(self) -> Result<RunningScheduler, SetupError> {
        RunningScheduler::start(self.build()?).map_err(SetupError::Thread)
    }
}

impl fmt::Debug for SchedulerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchedulerBuilder")
            .field("jobs", &self.jobs)
            .field("queue", &self.queue.kinds)
            .finish_non_exhaustive()
    }
}
