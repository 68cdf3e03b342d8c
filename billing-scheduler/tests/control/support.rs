//! The world of these tests: a manual clock, a store in memory, and a job that follows a script.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    Clock, Control, Job, JobContext, JobError, JobSpec, ManualClock, MemoryStore, Misfire, Outcome, Registry,
    RunRecord, Schedule, Scheduler, Scope, StopReason, Store,
    chrono::{DateTime, Utc},
    serde_json::{Value, json},
};
use tokio::sync::Notify;

pub(crate) fn at(clock: &str) -> DateTime<Utc> {
    format!("2026-01-05T{clock}Z").parse().expect("a time of day")
}

#[derive(Clone, Copy)]
pub(crate) enum Act {
    Fail,
    Unavailable,
    WaitForStop,
    /// Finishes when it is requested to stop.
    Finish,
    /// Finishes when the test lets it proceed.
    Pause,
    Hang,
}

/// What the runs do, one after the other. A run without an entry finishes.
#[derive(Clone, Default)]
pub(crate) struct Script {
    pub(crate) acts: Arc<Mutex<VecDeque<Act>>>,
    pub(crate) stopped_by: Arc<Mutex<Option<StopReason>>>,
    pub(crate) started: Arc<Notify>,
    pub(crate) proceed: Arc<Notify>,
    /// The idempotency key of each run.
    pub(crate) keys: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Job for Script {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        self.keys.lock().unwrap().push(ctx.idempotency_key());
        let act = self.acts.lock().unwrap().pop_front();
        self.started.notify_one();
        match act {
            None => Ok(Outcome::done(1)),
            Some(Act::Fail) => Err(JobError::retry("boom")),
            Some(Act::Unavailable) => Err(JobError::unavailable("no database")),
            Some(Act::WaitForStop) => {
                *self.stopped_by.lock().unwrap() = Some(ctx.stopped().await);
                Ok(Outcome::Interrupted { items: 7 })
            }
            Some(Act::Finish) => {
                ctx.stopped().await;
                Ok(Outcome::done(1))
            }
            Some(Act::Pause) => {
                self.proceed.notified().await;
                Ok(Outcome::done(1))
            }
            Some(Act::Hang) => std::future::pending().await,
        }
    }
}

pub(crate) struct World {
    pub(crate) clock: ManualClock,
    pub(crate) store: MemoryStore,
    pub(crate) script: Script,
    pub(crate) scheduler: Scheduler,
    pub(crate) control: Control,
}

impl World {
    pub(crate) fn new(now: &str, acts: &[Act], change: impl FnOnce(&mut JobSpec)) -> Self {
        let clock = ManualClock::at(at(now));
        let store = MemoryStore::new(Arc::new(clock.clone()));
        let script =
            Script { acts: Arc::new(Mutex::new(acts.iter().copied().collect())), ..Script::default() };
        let mut spec = JobSpec::new("job", "script", hourly());
        change(&mut spec);
        let scheduler = daemon(&store, &clock, &script, spec);
        let control = scheduler.control("ada");
        Self { clock, store, script, scheduler, control }
    }

    pub(crate) async fn tick(&self) {
        self.scheduler.tick();
        self.scheduler.idle().await;
    }

    /// Advances by two seconds with two polls, after which every request is applied.
    pub(crate) async fn two_seconds(&self) {
        for _ in 0..2 {
            self.clock.advance(Duration::from_secs(1));
            self.tick().await;
        }
    }

    pub(crate) async fn tick_at(&self, clock: &str) {
        self.clock.advance((at(clock) - self.clock.now()).to_std().expect("forwards"));
        self.tick().await;
    }

    /// Advances to `clock` and waits until the run that is due has started.
    pub(crate) async fn begin_at(&self, clock: &str) {
        self.clock.advance((at(clock) - self.clock.now()).to_std().expect("forwards"));
        self.scheduler.tick();
        self.script.started.notified().await;
    }

    /// Polls for control requests during a run.
    pub(crate) async fn poll(&self) {
        self.scheduler.tick();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn proceed(&self) {
        self.script.proceed.notify_one();
        self.scheduler.idle().await;
    }

    /// The history in short: status, cause, scheduled time, and the first time of a range.
    pub(crate) fn history(&self) -> Vec<String> {
        self.store.runs().iter().map(short).collect()
    }
}

pub(crate) fn short(run: &RunRecord) -> String {
    let range = run.range.map(|range| format!(" {} since {}", range.count, range.from.format("%H:%M")));
    let (status, trigger) = (run.status.as_str(), run.cause.as_str());
    format!("{status} {trigger} {}{}", run.scheduled_at.format("%H:%M"), range.unwrap_or_default())
}

pub(crate) fn hourly() -> Schedule {
    Schedule::every(Duration::from_hours(1)).expect("valid")
}

pub(crate) fn registry(script: &Script) -> Registry {
    let mut registry = Registry::new();
    let script = script.clone();
    registry.register("script", move |_: Value| script.clone());
    registry
}

pub(crate) fn daemon(
    store: &(impl Store + Clone),
    clock: &ManualClock,
    script: &Script,
    spec: JobSpec,
) -> Scheduler {
    let (store, clock) = (Arc::new(store.clone()), Arc::new(clock.clone()));
    Scheduler::build(&registry(script), [(spec, json!({}))], store, clock).expect("known kind")
}

pub(crate) fn each_node(spec: &mut JobSpec) {
    spec.scope = Scope::Node;
    spec.misfire = Misfire::CatchUp;
}
