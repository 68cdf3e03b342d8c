//! One daemon: its scheduler and its clocks.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    Clock, JobSpec, Middleware, Misfire, NewJob, Registry, Retry, Schedule, Scheduler, Scope,
    chrono::{DateTime, Utc},
    serde_json::{Value, json},
};

use crate::{
    event_loop::{Life, World},
    random_job::RandomJob,
    store::FaultyStore,
};

/// The timeout of a run.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The number of attempts at an occurrence.
pub(crate) const MAX_ATTEMPTS: u32 = 3;

/// Middleware that changes nothing.
struct Transparent;

impl Middleware for Transparent {}

impl World {
    pub(crate) fn scheduler(self: &Arc<Self>, life: Life) -> Scheduler {
        let holder = format!("{}.{}", life.daemon, life.life);
        let store = FaultyStore { world: Arc::clone(self), life, store: self.store.as_holder(holder) };
        Scheduler::build(&self.registry(life), self.specs(life.daemon), Arc::new(store), self.clock(life))
            .expect("a known kind")
    }

    pub(crate) fn registry(self: &Arc<Self>, life: Life) -> Registry {
        let mut registry = Registry::new();
        let world = Arc::clone(self);
        registry.register("act", move |_: Value| RandomJob { world: Arc::clone(&world), life });
        // With middleware, the task of a run does not exist before its instant.
        if self.seed.is_multiple_of(2) {
            registry.layer(Transparent);
        }
        registry
    }

    /// Returns the current configuration of a daemon.
    pub(crate) fn specs(&self, daemon: usize) -> Vec<(JobSpec, Value)> {
        let spec = |name: &str, seconds, misfire, scope| {
            let schedule = Schedule::every(Duration::from_secs(seconds)).expect("a period");
            let retry = Retry {
                max_attempts: MAX_ATTEMPTS,
                backoff: Duration::from_secs(2),
                max_backoff: Duration::from_secs(5),
                ..Retry::default()
            };
            let spec = JobSpec::new(name, "act", schedule);
            (JobSpec { misfire, scope, timeout: TIMEOUT, retry, ..spec }, json!({}))
        };
        let mut specs = vec![
            spec("each", 15, Misfire::CatchUp, Scope::Cluster),
            spec("latest", self.period_s[daemon].load(Ordering::Relaxed), Misfire::Coalesce, Scope::Cluster),
            spec("own", 20, Misfire::CatchUp, Scope::Node),
        ];
        if self.has_extra[daemon].load(Ordering::Relaxed) {
            specs.push(spec("extra", 10, Misfire::Coalesce, Scope::Cluster));
        }
        specs
    }

    /// Returns the job `name` of a daemon's configuration, for a change at run time.
    pub(crate) fn new_job(self: &Arc<Self>, life: Life, name: &str) -> NewJob {
        let mut specs = self.specs(life.daemon).into_iter().map(|(spec, _)| spec);
        let spec = specs.find(|spec| spec.name == name).expect("the daemon has it");
        let code = RandomJob { world: Arc::clone(self), life };
        NewJob::of(name, spec.schedule.clone(), code).configure(|configured| *configured = spec)
    }

    pub(crate) fn clock(self: &Arc<Self>, life: Life) -> Arc<dyn Clock> {
        Arc::new(DaemonClock { world: Arc::clone(self), life })
    }
}

/// The clocks of one process. The wall clock may be wrong, and no task wakes while the process is paused.
pub(crate) struct DaemonClock {
    world: Arc<World>,
    life: Life,
}

impl fmt::Debug for DaemonClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the clock of {}", self.life.daemon)
    }
}

#[async_trait]
impl Clock for DaemonClock {
    fn now(&self) -> DateTime<Utc> {
        self.world.wall(self.life.daemon)
    }

    fn monotonic(&self) -> Duration {
        self.world.now()
    }

    async fn sleep(&self, duration: Duration) {
        self.world.sleep(Some(self.life), duration).await;
    }
}
