//! The jobs of a scheduler as a program writes them, and their changes while it runs.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, PoisonError},
};

use super::{
    job_list::JobList,
    scheduled_job::{Definition, ScheduledJob},
    scheduler::{QueueKinds, Scheduler},
    shared::{Shared, lock},
};
use crate::{
    clock::Clock,
    function::{FnJob, IntoOutcome},
    job::{Job, JobContext},
    registry::{BuildError, Registry},
    runtime::{
        decide::{IntoSchedule, JobSpec, ScheduleError},
        store::Store,
    },
};

/// A job to add to a scheduler: its specification and its code.
///
/// ```
/// use std::time::Duration;
///
/// use billing_scheduler::{JobContext, Misfire, NewJob, daily};
///
/// async fn send_report(ctx: JobContext) -> std::io::Result<()> {
///     println!("the report of {}", ctx.occurrence.scheduled_at);
///     Ok(())
/// }
///
/// let report = NewJob::new("report", daily().at("02:30").timezone("Europe/Berlin"), send_report).configure(|spec| {
///     spec.misfire = Misfire::CatchUp;
///     spec.timeout = Duration::from_mins(30);
/// });
/// ```
#[must_use]
pub struct NewJob {
    spec: Result<JobSpec, SetupError>,
    code: Code,
}

/// The code of a job.
enum Code {
    Job(Arc<dyn Job>),
    /// The parameters for the kind that the specification names.
    Kind(serde_json::Value),
}

/// Why a job cannot be added, changed or removed, or the scheduler cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The schedule of a job is invalid.
    #[error("invalid schedule of job `{job}`: {source}")]
    Schedule {
        /// The job's name.
        job: String,
        /// The mistake in the schedule.
        source: ScheduleError,
    },
    /// The kind of a job is unknown, or its parameters are invalid.
    #[error("cannot build job `{job}`: {source}")]
    Build {
        /// The job's name.
        job: String,
        /// The mistake in the job.
        source: BuildError,
    },
    /// The scheduler has a job with this name.
    #[error("there is already a job `{job}`")]
    Duplicate {
        /// The job's name.
        job: String,
    },
    /// The scheduler has no job with this name.
    #[error("unknown job `{job}`")]
    Unknown {
        /// The requested name.
        job: String,
    },
    /// The scheduler has kinds of queued jobs, and [`Store::queue`] returned `None`.
    #[error("cannot run queued jobs of kind `{kind}`: the store has no queue")]
    NoQueue {
        /// One of the kinds.
        kind: String,
    },
    /// The thread that renews leases cannot be started.
    #[error("cannot start the thread that renews leases: {0}")]
    Thread(#[source] std::io::Error),
}

impl NewJob {
    /// The kind of a job without a registered kind.
    const FUNCTION: &str = "function";

    /// Returns a job that calls an async function or closure.
    pub fn new<F, R>(name: impl Into<String>, schedule: impl IntoSchedule, run: F) -> Self
    where
        F: Fn(JobContext) -> R + Send + Sync + 'static,
        R: Future<Output: IntoOutcome> + Send + 'static,
    {
        Self::of(name, schedule, FnJob(run))
    }

    /// Returns a job of a type that implements [`Job`].
    pub fn of(name: impl Into<String>, schedule: impl IntoSchedule, job: impl Job) -> Self {
        Self::with_code(name.into(), schedule, Self::FUNCTION, Code::Job(Arc::new(job)))
    }

    /// Returns a job of a registered kind: see [`SchedulerBuilder::kinds`](crate::SchedulerBuilder::kinds).
    pub fn of_kind(
        name: impl Into<String>,
        schedule: impl IntoSchedule,
        kind: &str,
        params: serde_json::Value,
    ) -> Self {
        Self::with_code(name.into(), schedule, kind, Code::Kind(params))
    }

    fn with_code(job: String, schedule: impl IntoSchedule, kind: &str, code: Code) -> Self {
        let spec = match schedule.into_schedule() {
            Ok(schedule) => Ok(JobSpec::new(job, kind, schedule)),
            Err(source) => Err(SetupError::Schedule { job, source }),
        };
        Self { spec, code }
    }

    /// Changes the defaults of [`JobSpec::new`]: the policies for misfires and failures, the timeout, the jitter.
    pub fn configure(mut self, change: impl FnOnce(&mut JobSpec)) -> Self {
        if let Ok(spec) = &mut self.spec {
            change(spec);
        }
        self
    }

    fn define(self, kinds: &Registry) -> Result<Definition, SetupError> {
        let spec = self.spec?;
        match self.code {
            Code::Job(job) => Ok(Definition::new(spec, serde_json::Value::Null, job)),
            Code::Kind(params) => {
                let job = spec.name.clone();
                Definition::build(kinds, spec, params).map_err(|source| SetupError::Build { job, source })
            }
        }
    }
}

impl fmt::Debug for NewJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewJob").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Scheduler {
    /// Returns a scheduler of `jobs`, whose kinds it keeps for jobs that are added later.
    pub(crate) fn from_jobs(
        kinds: Registry,
        jobs: Vec<NewJob>,
        queue: QueueKinds,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SetupError> {
        let mut names = HashSet::new();
        let specs = jobs.iter().filter_map(|job| job.spec.as_ref().ok());
        if let Some(twice) = specs.map(|spec| &*spec.name).find(|name| !names.insert(*name)) {
            return Err(SetupError::Duplicate { job: twice.to_owned() });
        }
        names.clear();
        if let Some(twice) = queue.kinds.iter().find(|kind| !names.insert(kind.name())) {
            return Err(SetupError::Duplicate { job: twice.name().to_owned() });
        }
        let kind = queue.kinds.first().map(|kind| kind.name().to_owned());
        let definitions = jobs.into_iter().map(|job| job.define(&kinds));
        let scheduler = Self::with_definitions(&kinds, definitions, queue, store, clock)?;
        if let Some(kind) = kind.filter(|_| scheduler.shared.queue.is_none()) {
            return Err(SetupError::NoQueue { kind });
        }
        // It is set here alone.
        let _ = scheduler.shared.kinds.set(kinds);
        Ok(scheduler)
    }

    /// Adds a job while the scheduler runs, by the rules of [`Scheduler::reload`]: a new job is due at its next scheduled time, and a
    /// job that the store knows continues at its position there. Times that passed after its removal were not due.
    ///
    /// The store has the positions of jobs, not their code: other processes do not get the job, and neither does this one after a
    /// restart, unless they add it as well.
    ///
    /// # Errors
    /// The scheduler has a job with this name, or the job is invalid. Nothing has changed then.
    pub fn add(&self, job: NewJob) -> Result<(), SetupError> {
        self.put(job, false)
    }

    /// Replaces a job while the scheduler runs, by the rules of [`Scheduler::reload`]: a run in progress continues with the old
    /// definition, a time of the old schedule that passed without a run is still run, and times of the new schedule that passed before
    /// this call are not.
    ///
    /// # Errors
    /// The scheduler has no job with this name, or the job is invalid. Nothing has changed then.
    pub fn update(&self, job: NewJob) -> Result<(), SetupError> {
        self.put(job, true)
    }

    fn put(&self, job: NewJob, is_present: bool) -> Result<(), SetupError> {
        let shared = &self.shared;
        let definition = job.define(shared.kinds.get_or_init(Registry::new))?;
        let scheduled = {
            let _one_at_a_time = lock(&shared.reloading);
            let job = definition.spec.name.clone();
            match (shared.job(&job).is_some(), is_present) {
                (true, false) => return Err(SetupError::Duplicate { job }),
                (false, true) => return Err(SetupError::Unknown { job }),
                _ => {}
            }
            shared.put(&mut shared.jobs.write().unwrap_or_else(PoisonError::into_inner), definition, true)
        };
        shared.wake(&scheduled);
        Ok(())
    }

    /// Removes a job while the scheduler runs. A run in progress continues to its end.
    ///
    /// # Errors
    /// The scheduler has no job with this name.
    pub fn remove(&self, name: &str) -> Result<(), SetupError> {
        let shared = &self.shared;
        let _one_at_a_time = lock(&shared.reloading);
        let job = shared.job(name).ok_or_else(|| SetupError::Unknown { job: name.to_owned() })?;
        job.remove(shared.clock.now());
        shared.wake(&job);
        Ok(())
    }

    /// Returns the specification of a job.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<JobSpec> {
        Some(self.shared.job(name)?.definition().spec)
    }

    /// Returns the specifications of all jobs, sorted by name.
    #[must_use]
    pub fn list(&self) -> Vec<JobSpec> {
        let jobs: Vec<_> = self.shared.jobs().iter().filter(|job| !job.is_removed()).cloned().collect();
        let mut specs: Vec<_> = jobs.iter().map(|job| job.definition().spec).collect();
        specs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        specs
    }
}

impl Shared {
    /// Puts a definition in force: in the job of its name, or in a new one. The job wakes up if the definition `is_changed`.
    pub(super) fn put(
        &self,
        jobs: &mut JobList,
        definition: Definition,
        is_changed: bool,
    ) -> Arc<ScheduledJob> {
        if let Some(job) = jobs.find(&definition.spec.name).cloned() {
            let was_removed = jobs.redefine(&job, definition, self.clock.now());
            if is_changed || was_removed {
                lock(&self.due_queue).requeue(job.index());
            }
            return job;
        }
        let mut due_queue = lock(&self.due_queue);
        // A job that was removed leaves its number to the next new one, so that their count does not grow without limit.
        let retired = due_queue.retired().find(|index| jobs[*index].is_removed());
        let index = if let Some(index) = retired {
            due_queue.requeue(index);
            index
        } else {
            due_queue.add()
        };
        jobs.add(index, definition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::ManualClock, runtime::decide::every};

    #[tokio::test]
    async fn removed_jobs_leave_no_places_behind() {
        let clock = ManualClock::at(chrono::DateTime::UNIX_EPOCH);
        let scheduler = Scheduler::builder().clock(clock).build().expect("no job is invalid");
        scheduler.tick();
        scheduler.idle().await;
        for round in 0..20 {
            let name = format!("round-{round}");
            scheduler.add(NewJob::new(&name, every("1h"), |_| async {})).expect("a new name");
            scheduler.idle().await;
            scheduler.remove(&name).expect("it is there");
            scheduler.idle().await;
        }
        assert_eq!(scheduler.shared.jobs().len(), 1);
    }
}
