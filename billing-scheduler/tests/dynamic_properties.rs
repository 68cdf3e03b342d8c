//! Random changes of jobs while the scheduler runs, compared with a model: an edit never runs a time that passed before it, and loses
//! no time that was due.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use billing_scheduler::{
    Clock as _, ManualClock, MemoryStore, Misfire, NewJob, RunStatus, Scheduler, SchedulerBuilder,
    chrono::{DateTime, Utc},
    every,
};
use proptest::{collection::vec, prelude::*};

/// The names of the jobs.
const JOBS: [&str; 2] = ["a", "b"];
/// The periods of their schedules, in seconds.
const PERIODS: [i64; 4] = [60, 90, 600, 3_600];

#[derive(Clone, Debug)]
enum Step {
    /// Time passes, and nothing ticks the scheduler.
    Sleep(u64),
    /// Time passes, and then the scheduler is ticked.
    Tick(u64),
    /// Adds the job if it is missing; changes it otherwise.
    Put {
        job: usize,
        period: usize,
    },
    Remove {
        job: usize,
    },
    /// Another process continues with another schedule of the job.
    Restart {
        job: usize,
        period: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1_u64..100).prop_map(|tens| Step::Sleep(tens * 10)),
        (1_u64..100).prop_map(|tens| Step::Tick(tens * 10)),
        (0..JOBS.len(), 0..PERIODS.len()).prop_map(|(job, period)| Step::Put { job, period }),
        (0..JOBS.len()).prop_map(|job| Step::Remove { job }),
        (0..JOBS.len(), 0..PERIODS.len()).prop_map(|(job, period)| Step::Restart { job, period }),
    ]
}

/// What the scheduler must do with one job.
#[derive(Default)]
struct Model {
    /// The period in force; `None` before the job is added and after it is removed.
    period: Option<i64>,
    /// Every time until then is decided.
    cursor: DateTime<Utc>,
    /// The times that were due when the job was removed.
    left: Vec<DateTime<Utc>>,
    /// The times that have run.
    done: Vec<DateTime<Utc>>,
}

impl Model {
    /// Returns the undecided times up to `now`.
    fn due(&self, now: DateTime<Utc>) -> Vec<DateTime<Utc>> {
        let Some(period) = self.period else { return Vec::new() };
        let first = (self.cursor.timestamp() / period + 1) * period;
        let times = (first..=now.timestamp()).step_by(usize::try_from(period).unwrap());
        times.map(|seconds| DateTime::from_timestamp(seconds, 0).unwrap()).collect()
    }

    fn run_due(&mut self, now: DateTime<Utc>) {
        let due = self.due(now);
        self.done.extend(due);
        self.cursor = now;
    }

    /// Another schedule, or none, applies from now on. The times of the previous one that passed without a run are kept.
    fn change(&mut self, period: Option<i64>, now: DateTime<Utc>) {
        if self.period == period {
            return;
        }
        let due = self.due(now);
        self.left.extend(due);
        (self.period, self.cursor) = (period, now);
        if period.is_some() {
            self.done.append(&mut self.left);
        }
    }
}

fn new_job(name: &str, period: i64) -> NewJob {
    let schedule = every(Duration::from_secs(period.unsigned_abs()));
    NewJob::new(name, schedule, |_| async {}).configure(|spec| spec.misfire = Misfire::CatchUp)
}

struct World {
    clock: ManualClock,
    store: MemoryStore,
    scheduler: Scheduler,
    models: BTreeMap<&'static str, Model>,
}

impl World {
    fn new() -> Self {
        // Every step is five seconds and a half after a multiple of ten, so no lease cycle waits for a scheduled time meanwhile.
        let clock = ManualClock::at("2026-01-05T12:00:05.5Z".parse().unwrap());
        let store = MemoryStore::new(Arc::new(clock.clone()));
        let scheduler = Scheduler::builder().clock(clock.clone()).store(store.clone()).build().unwrap();
        let models = JOBS.map(|job| (job, Model::default())).into();
        Self { clock, store, scheduler, models }
    }

    /// Replaces the scheduler by one with the jobs of the models.
    fn restart(&mut self) {
        let builder = Scheduler::builder().clock(self.clock.clone()).store(self.store.clone());
        let jobs = self.models.iter().filter_map(|(name, model)| Some(new_job(name, model.period?)));
        self.scheduler = jobs.fold(builder, SchedulerBuilder::with_job).build().unwrap();
        self.scheduler.tick();
    }

    async fn apply(&mut self, step: &Step) {
        let now = |world: &Self| world.clock.now();
        match *step {
            // Nothing is processed, so the model does not change.
            Step::Sleep(seconds) => return self.clock.advance(Duration::from_secs(seconds)),
            Step::Tick(seconds) => {
                self.clock.advance(Duration::from_secs(seconds));
                self.scheduler.tick();
            }
            Step::Put { job, period } => {
                let (name, period, now) = (JOBS[job], PERIODS[period], now(self));
                let job = new_job(name, period);
                let is_present = self.scheduler.get(name).is_some();
                let put = if is_present { self.scheduler.update(job) } else { self.scheduler.add(job) };
                put.unwrap();
                self.models.get_mut(name).unwrap().change(Some(period), now);
            }
            Step::Remove { job } => {
                let (name, now) = (JOBS[job], now(self));
                if self.scheduler.remove(name).is_err() {
                    return;
                }
                self.models.get_mut(name).unwrap().change(None, now);
            }
            Step::Restart { job, period } => {
                let now = now(self);
                let model = self.models.get_mut(JOBS[job]).unwrap();
                // A process that never had the job does not know that it was removed.
                if model.period.is_some() {
                    model.change(Some(PERIODS[period]), now);
                }
                self.restart();
            }
        }
        self.scheduler.idle().await;
        let now = now(self);
        self.models.values_mut().for_each(|model| model.run_due(now));
    }

    /// Returns the scheduled times of the runs of a job, in their order.
    fn done(&self, job: &str) -> Vec<DateTime<Utc>> {
        let runs = self.store.runs();
        let done = runs.iter().filter(|run| run.job == job && run.status == RunStatus::Done);
        let mut done: Vec<_> = done.map(|run| run.scheduled_at).collect();
        done.sort_unstable();
        done
    }
}

proptest! {
    #[test]
    fn edits_neither_surprise_nor_lose(steps in vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            world.apply(&Step::Tick(0)).await;
            for (number, step) in steps.iter().enumerate() {
                world.apply(step).await;
                for (job, model) in &world.models {
                    let mut expected = model.done.clone();
                    expected.sort_unstable();
                    prop_assert_eq!(world.done(job), expected, "`{}` after step {}: {:?}", job, number, step);
                }
            }
            Ok(())
        })?;
    }
}
