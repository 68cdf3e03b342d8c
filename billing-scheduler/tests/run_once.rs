//! One run of a job outside of its schedule, on a manual clock.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    Claim, Clock, Job, JobContext, JobError, JobSpec, JobState, ManualClock, MemoryStore, Outcome, Registry,
    RunCause, RunOnceError, RunRecord, RunStatus, Schedule, Scheduler, StopReason, Store,
    chrono::{DateTime, Utc},
    serde_json::{Value, json},
};
use tokio::sync::Notify;

/// Fails, waits or finishes, as the test configures.
#[derive(Clone, Default)]
struct Work {
    fails: bool,
    waits: bool,
    started: Arc<Notify>,
    finish: Arc<Notify>,
    stopped_by: Arc<Mutex<Option<StopReason>>>,
}

#[async_trait]
impl Job for Work {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        self.started.notify_one();
        if self.fails {
            return Err(JobError::retry("boom"));
        }
        if self.waits {
            tokio::select! {
                reason = ctx.stopped() => {
                    *self.stopped_by.lock().unwrap() = Some(reason);
                    return Ok(Outcome::Interrupted { items: 1 });
                }
                () = self.finish.notified() => {}
            }
        }
        Ok(Outcome::Done { items: 2, details: json!({ "amount": "1.25" }) })
    }
}

struct World {
    clock: ManualClock,
    store: MemoryStore,
    work: Work,
    scheduler: Scheduler,
}

impl World {
    fn new(work: Work) -> Self {
        let clock = ManualClock::at(at("13:30:00"));
        let store = MemoryStore::new(Arc::new(clock.clone()));
        let mut registry = Registry::new();
        let job = work.clone();
        registry.register("work", move |_: Value| job.clone());
        let hourly = Schedule::every(Duration::from_hours(1)).expect("valid");
        let jobs = [(JobSpec::new("job", "work", hourly), json!({}))];
        let shared = Arc::new(store.clone());
        let scheduler = Scheduler::build(&registry, jobs, shared, Arc::new(clock.clone())).expect("valid");
        Self { clock, store, work, scheduler }
    }

    /// Starts a run and returns when the job has started.
    async fn begin(&self) -> tokio::task::JoinHandle<Result<RunRecord, RunOnceError>> {
        let scheduler = self.scheduler.clone();
        let run = tokio::spawn(async move { scheduler.run_once("job", None).await });
        self.work.started.notified().await;
        run
    }

    async fn is_free(&self) -> bool {
        self.store.as_holder("other").jobs().await.unwrap().iter().all(|row| row.lease.is_none())
    }
}

fn at(clock: &str) -> DateTime<Utc> {
    format!("2026-01-05T{clock}Z").parse().expect("a time of day")
}

fn waiting() -> World {
    World::new(Work { waits: true, ..Work::default() })
}

#[tokio::test]
async fn run_once_records_manual_run() {
    let world = World::new(Work::default());
    let run = world.scheduler.run_once("job", Some("by hand")).await.expect("it runs");
    assert_eq!((run.status, run.cause, run.items), (RunStatus::Done, RunCause::Manual, 2));
    assert_eq!(run.scheduled_at, at("13:30:00"));
    assert_eq!(run.reason.as_deref(), Some("by hand"));
    assert_eq!(run.details, json!({ "amount": "1.25" }));
    assert_eq!(world.store.runs(), [run], "the record is returned as it was written");
    assert!(world.is_free().await);
    assert_eq!(world.store.jobs().await.unwrap()[0].state, JobState::at(at("13:30:00")));
}

#[tokio::test]
async fn run_once_ignores_schedule_and_pause() {
    let world = World::new(Work::default());
    world.scheduler.tick();
    world.scheduler.idle().await;
    world.scheduler.control("ada").pause("job", "an upgrade").await.expect("the store answers");
    let hint = world.store.jobs().await.unwrap()[0].claim_hint.clone();
    for _ in 0..2 {
        world.scheduler.run_once("job", None).await.expect("it runs");
    }
    assert_eq!(world.store.jobs().await.unwrap()[0].claim_hint, hint, "the claim hint stays");
    world.scheduler.control("ada").resume("job", None).await.expect("the store answers");
    world.clock.advance(Duration::from_mins(30));
    world.scheduler.tick();
    world.scheduler.idle().await;
    let causes: Vec<_> = world.store.runs().iter().map(|run| run.cause).collect();
    assert_eq!(causes, [RunCause::Manual, RunCause::Manual, RunCause::Schedule]);
}

#[tokio::test]
async fn failed_run_once_is_not_retried() {
    let world = World::new(Work { fails: true, ..Work::default() });
    let run = world.scheduler.run_once("job", None).await.expect("the failure is recorded");
    assert_eq!((run.status, run.error.as_deref()), (RunStatus::Dead, Some("boom")));
    assert_eq!(world.store.jobs().await.unwrap()[0].state.retrying, None);
}

#[tokio::test]
async fn run_once_renews_its_lease() {
    let world = waiting();
    let run = world.begin().await;
    for _ in 0..60 {
        world.clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
    assert!(!world.is_free().await, "a lease of ten seconds is held for a minute");
    world.work.finish.notify_one();
    let run = run.await.expect("no panic").expect("it is recorded");
    assert_eq!(run.status, RunStatus::Done);
    assert!(world.is_free().await);
}

#[tokio::test]
async fn interrupt_stops_run_once() {
    let world = waiting();
    let run = world.begin().await;
    world.scheduler.interrupt();
    let run = run.await.expect("no panic").expect("it is recorded");
    assert_eq!(run.status, RunStatus::Interrupted);
    assert_eq!(*world.work.stopped_by.lock().unwrap(), Some(StopReason::Drain));
    assert!(matches!(world.scheduler.run_once("job", None).await, Err(RunOnceError::ShuttingDown)));
}

#[tokio::test]
async fn run_once_stops_when_lease_is_lost() {
    let world = waiting();
    let run = world.begin().await;
    // No renewal is sent while the clock jumps beyond the lease.
    world.clock.advance(Duration::from_secs(11));
    let other = world.store.as_holder("other");
    assert!(matches!(other.acquire("job", at("13:30:00")).await, Ok(Claim::Held(_))));
    let error = run.await.expect("no panic").expect_err("it is not recorded");
    assert!(matches!(error, RunOnceError::Record(_)), "{error}");
    assert_eq!(*world.work.stopped_by.lock().unwrap(), Some(StopReason::LeaseLost));
    assert_eq!(world.store.runs(), []);
}

#[tokio::test]
async fn run_once_never_overlaps_another_run() {
    let world = waiting();
    let run = world.begin().await;
    let error = world.scheduler.run_once("job", None).await.expect_err("it is running");
    assert!(matches!(error, RunOnceError::AlreadyRunning { .. }), "{error}");
    let unknown = world.scheduler.run_once("jbo", None).await.expect_err("no such job");
    assert_eq!(unknown.to_string(), "unknown job `jbo`");
    world.work.finish.notify_one();
    run.await.expect("no panic").expect("it is recorded");

    let other = world.store.as_holder("host-7");
    let Ok(Claim::Held(lease)) = other.acquire("job", world.clock.now()).await else {
        panic!("the lease should be free")
    };
    let error = world.scheduler.run_once("job", None).await.expect_err("another process runs it");
    assert_eq!(error.to_string(), "job `job` is run by host-7");
    other.release(&lease).await.expect("the store answers");
}

#[tokio::test]
async fn unticked_scheduler_claims_nothing_else() {
    let world = World::new(Work::default());
    let run = world.scheduler.run_once("job", None).await.expect("it runs");
    world.clock.advance(Duration::from_hours(2));
    world.scheduler.idle().await;
    let other = world.store.as_holder("other");
    let Ok(Claim::Held(lease)) = other.acquire("job", world.clock.now()).await else {
        panic!("the lease should be free")
    };
    assert_eq!(lease.fencing_token.0, run.fencing_token.0 + 1, "no claim since the run");
}

#[tokio::test]
async fn drain_waits_for_run_once() {
    let world = waiting();
    let run = world.begin().await;
    run.abort();
    world.work.finish.notify_one();
    let report = world.scheduler.drain(Duration::from_secs(5)).await;
    assert_eq!(report.abandoned, 0);
    assert_eq!(world.store.runs().len(), 1, "the run continued without its caller");
}
