//! Faulty plugins next to a correct one: a fault affects only its own run.

use std::{
    fmt,
    panic::panic_any,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    BlockingJob, Claim, Clock, Job, JobContext, JobError, JobSpec, ManualClock, MemoryStore, Outcome,
    Registry, RunRecord, RunStatus, Schedule, Scheduler, StopReason, Store,
    chrono::{DateTime, Utc},
    serde_json::{Value, json},
};
use tokio::sync::watch;

fn at(clock: &str) -> DateTime<Utc> {
    format!("2026-01-05T{clock}Z").parse().expect("a time of day")
}

/// Panics when it is dropped.
struct PanickingDrop;

impl Drop for PanickingDrop {
    fn drop(&mut self) {
        // A panic during another panic would abort the process.
        assert!(std::thread::panicking(), "dropped");
    }
}

/// An error that panics when it is formatted, or when it is dropped.
#[derive(Debug)]
enum FaultyError {
    Shown,
    Dropped(ErrorPart),
}

#[derive(Debug)]
struct ErrorPart;

impl Drop for ErrorPart {
    fn drop(&mut self) {
        drop(PanickingDrop);
    }
}

impl fmt::Display for FaultyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shown => panic!("shown"),
            Self::Dropped(_) => f.write_str("an error"),
        }
    }
}

impl std::error::Error for FaultyError {}

#[derive(Clone, Copy, Debug)]
enum Fault {
    PanicsWithText,
    PanicsWithNumber,
    PanicsWithPanickingDrop,
    PanicsInDrop,
    ErrorPanicsInDisplay,
    ErrorPanicsInDrop,
    HangsForever,
    HangsForeverAndPanicsWhenDropped,
}

/// Has its fault in the first run only.
struct Sinner {
    fault: Fault,
    runs: AtomicU32,
    started: watch::Sender<u32>,
}

#[async_trait]
impl Job for Sinner {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        ctx.report(json!({ "step": 1 }));
        let earlier = self.runs.fetch_add(1, Ordering::SeqCst);
        self.started.send_replace(earlier + 1);
        if earlier > 0 {
            return Ok(Outcome::done(1));
        }
        match self.fault {
            Fault::PanicsWithText => panic!("the plugin has a bug"),
            Fault::PanicsWithNumber => panic_any(42),
            Fault::PanicsWithPanickingDrop => panic_any(PanickingDrop),
            Fault::PanicsInDrop => drop(PanickingDrop),
            Fault::ErrorPanicsInDisplay => return Err(JobError::retry(FaultyError::Shown)),
            Fault::ErrorPanicsInDrop => return Err(JobError::retry(FaultyError::Dropped(ErrorPart))),
            Fault::HangsForever => std::future::pending::<()>().await,
            Fault::HangsForeverAndPanicsWhenDropped => {
                let _bomb = PanickingDrop;
                std::future::pending::<()>().await;
            }
        }
        unreachable!("it sinned");
    }
}

struct Good;

#[async_trait]
impl Job for Good {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        Ok(Outcome::done(1))
    }
}

struct World {
    clock: ManualClock,
    store: MemoryStore,
    scheduler: Scheduler,
}

impl World {
    /// A job `good` and jobs of the kind `bad`, each due at 14:00 of a clock that shows 13:59.
    async fn new(bad: &[&str], register: impl FnOnce(&mut Registry)) -> Self {
        let clock = ManualClock::at(at("13:59:00"));
        let store = MemoryStore::new(Arc::new(clock.clone()));
        let mut registry = Registry::new();
        registry.register("good", |_: Value| Good);
        register(&mut registry);
        let hourly = || Schedule::every(Duration::from_hours(1)).expect("whole seconds");
        let bad = bad.iter().map(|name| (JobSpec::new(*name, "bad", hourly()), json!({})));
        let good = (JobSpec::new("good", "good", hourly()), json!({}));
        let jobs: Vec<_> = bad.chain([good]).collect();
        let (shared_store, shared_clock) = (Arc::new(store.clone()), Arc::new(clock.clone()));
        let scheduler = Scheduler::build(&registry, jobs, shared_store, shared_clock).expect("known kinds");
        scheduler.tick();
        scheduler.idle().await;
        Self { clock, store, scheduler }
    }

    async fn of(fault: Fault) -> (Self, watch::Receiver<u32>) {
        let (started, runs) = watch::channel(0);
        let register = |registry: &mut Registry| {
            registry.register("bad", move |_: Value| Sinner {
                fault,
                runs: AtomicU32::new(0),
                started: started.clone(),
            });
        };
        (Self::new(&["bad"], register).await, runs)
    }

    fn advance_to(&self, clock: &str) {
        self.clock.advance((at(clock) - self.clock.now()).to_std().expect("forwards"));
        self.scheduler.tick();
    }

    fn runs(&self, job: &str) -> Vec<RunRecord> {
        self.store.runs().into_iter().filter(|run| run.job == job).collect()
    }

    fn statuses(&self, job: &str) -> Vec<RunStatus> {
        self.runs(job).iter().map(|run| run.status).collect()
    }

    /// Advances the clock and renews leases until `job` has this number of runs.
    async fn pass_time_until(&self, job: &str, runs: usize) {
        for _ in 0..2_000 {
            if self.runs(job).len() >= runs {
                return;
            }
            self.clock.advance(Duration::from_secs(1));
            self.scheduler.renew_leases().await;
            tokio::task::yield_now().await;
        }
        panic!("`{job}` has {} runs", self.runs(job).len());
    }
}

/// Checks the history of a faulty run, and that the next attempt succeeds.
async fn check(fault: Fault, expected: &str) {
    let (world, mut started) = World::of(fault).await;
    world.advance_to("14:00:00");
    started.wait_for(|runs| *runs == 1).await.expect("it is there");
    world.pass_time_until("good", 1).await;
    world.pass_time_until("bad", 1).await;
    world.scheduler.idle().await;
    let run = &world.runs("bad")[0];
    assert_eq!(run.error.as_deref(), Some(expected), "{fault:?}");
    assert_eq!(run.status, RunStatus::Retrying, "{fault:?}");
    assert_eq!(run.details, json!({ "step": 1 }), "what was reported is kept, {fault:?}");
    assert_eq!(world.statuses("good"), [RunStatus::Done], "{fault:?}");
    // The lease is free, so the next attempt runs.
    world.clock.advance(Duration::from_secs(15));
    world.scheduler.tick();
    world.scheduler.idle().await;
    assert_eq!(world.statuses("bad"), [RunStatus::Retrying, RunStatus::Done], "{fault:?}");
    assert_eq!(*started.borrow(), 2, "{fault:?}");
}

#[tokio::test]
async fn panic_is_isolated() {
    check(Fault::PanicsWithText, "the job panicked: the plugin has a bug").await;
}

#[tokio::test]
async fn panic_without_text_is_isolated() {
    check(Fault::PanicsWithNumber, "the job panicked: no message").await;
}

#[tokio::test]
async fn panic_payload_with_panicking_drop_is_isolated() {
    check(Fault::PanicsWithPanickingDrop, "the job panicked: no message").await;
}

#[tokio::test]
async fn panic_in_drop_is_isolated() {
    check(Fault::PanicsInDrop, "the job panicked: dropped").await;
}

#[tokio::test]
async fn error_with_panicking_display_is_isolated() {
    let expected = "the job failed, and formatting its error panicked: shown";
    check(Fault::ErrorPanicsInDisplay, expected).await;
}

#[tokio::test]
async fn error_with_panicking_drop_is_isolated() {
    check(Fault::ErrorPanicsInDrop, "an error").await;
}

#[tokio::test]
async fn endless_run_is_abandoned() {
    check(Fault::HangsForever, "the run exceeded its timeout of 600 s").await;
}

#[tokio::test]
async fn panic_of_abandoned_run_is_isolated() {
    check(Fault::HangsForeverAndPanicsWhenDropped, "the run exceeded its timeout of 600 s").await;
}

/// Blocks its thread until the gate opens; checks for a stop request only if it is configured so.
#[derive(Clone, Default)]
struct Gate {
    open: Arc<(Mutex<bool>, Condvar)>,
    inside: watch::Sender<u32>,
}

struct Blocker {
    gate: Gate,
    polite: bool,
}

impl Gate {
    fn open(&self) {
        *self.open.0.lock().expect("no thread panics with the lock") = true;
        self.open.1.notify_all();
    }

    async fn holds(&self, blockers: u32) {
        self.inside.subscribe().wait_for(|inside| *inside == blockers).await.expect("it is there");
    }

    fn register(&self, polite: bool) -> impl FnOnce(&mut Registry) {
        let gate = self.clone();
        move |registry| {
            registry.register_blocking("bad", move |_: Value| Blocker { gate: gate.clone(), polite });
        }
    }
}

impl BlockingJob for Blocker {
    fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        self.gate.inside.send_modify(|inside| *inside += 1);
        let (open, opened) = &*self.gate.open;
        let mut open = open.lock().expect("no thread panics with the lock");
        while !*open {
            if self.polite && ctx.stop_requested() == Some(StopReason::Drain) {
                return Ok(Outcome::Interrupted { items: 0 });
            }
            open = opened
                .wait_timeout(open, Duration::from_millis(5))
                .expect("no thread panics with the lock")
                .0;
        }
        Ok(Outcome::done(1))
    }
}

/// With one thread for all jobs that do not block.
#[tokio::test]
async fn blocking_jobs_do_not_delay_others() {
    let gate = Gate::default();
    let world = World::new(&["bad-1", "bad-2", "bad-3", "bad-4"], gate.register(false)).await;
    world.advance_to("14:00:00");
    gate.holds(4).await;
    while world.runs("good").is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(world.runs("bad-1").is_empty(), "they are still there");
    gate.open();
    world.scheduler.idle().await;
    for job in ["bad-1", "bad-2", "bad-3", "bad-4"] {
        assert_eq!(world.statuses(job), [RunStatus::Done]);
    }
}

#[tokio::test]
async fn blocking_job_receives_stop_request() {
    let gate = Gate::default();
    let world = World::new(&["bad"], gate.register(true)).await;
    world.advance_to("14:00:00");
    gate.holds(1).await;
    assert_eq!(world.scheduler.drain(Duration::ZERO).await.abandoned, 0);
    assert_eq!(world.statuses("bad"), [RunStatus::Interrupted]);
}

#[tokio::test]
async fn panic_of_blocking_job_is_isolated() {
    struct Panics;
    impl BlockingJob for Panics {
        fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
            panic!("in a separate thread")
        }
    }
    let world = World::new(&["bad"], |registry| registry.register_blocking("bad", |_: Value| Panics)).await;
    world.advance_to("14:00:00");
    world.scheduler.idle().await;
    let error = world.runs("bad")[0].error.clone();
    assert_eq!(error.as_deref(), Some("the job panicked: in a separate thread"));
}

#[tokio::test]
async fn endless_blocking_job_uses_one_thread() {
    let gate = Gate::default();
    let world = World::new(&["bad"], gate.register(false)).await;
    world.advance_to("14:00:00");
    gate.holds(1).await;
    world.pass_time_until("bad", 1).await;
    let error = world.runs("bad")[0].error.clone();
    assert_eq!(error.as_deref(), Some("the run exceeded its timeout of 600 s"));
    // The next attempts are due, and the thread still exists.
    for _ in 0..100 {
        world.clock.advance(Duration::from_mins(1));
        world.scheduler.tick();
        tokio::task::yield_now().await;
    }
    assert_eq!(*gate.inside.borrow(), 1, "no second thread");
    assert_eq!(world.statuses("good"), [RunStatus::Done, RunStatus::Done]);
    let other = world.store.as_holder("other");
    let Ok(Claim::Held(lease)) = other.acquire("bad", at("13:00:00")).await else {
        panic!("it should be free")
    };
    other.release(&lease).await.expect("it is ours");

    gate.open();
    world.scheduler.idle().await;
    world.clock.advance(Duration::from_secs(1));
    world.scheduler.tick();
    world.scheduler.idle().await;
    assert_eq!(world.statuses("bad")[..2], [RunStatus::Retrying, RunStatus::Done]);
}
