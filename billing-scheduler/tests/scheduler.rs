//! Lease cycles on a manual clock: no test waits for real time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    Claim, Clock, DrainReport, FencingToken, Job, JobContext, JobError, JobSpec, ManualClock, MemoryStore,
    Misfire, Occurrence, Outcome, Registry, RunStatus, STOP_GRACE, Schedule, Scheduler, Scope, StopHandle,
    StopReason, Store,
    chrono::{DateTime, TimeDelta, Utc},
    serde_json::{self, json},
};
use tokio::sync::Notify;

fn at(clock: &str) -> DateTime<Utc> {
    format!("2026-01-05T{clock}Z").parse().expect("a time of day")
}

/// The behaviour of the next runs; `Done` if the list is empty.
#[derive(Clone, Copy)]
enum Act {
    Done,
    Fail,
    WaitForStop,
    /// Ends after this duration, even if it is requested to stop.
    Sleep(Duration),
    Hang,
}

/// A scheduled time and the number of the attempt.
type Attempt = (DateTime<Utc>, u32);

#[derive(Clone, Default)]
struct Script {
    acts: Arc<Mutex<VecDeque<Act>>>,
    seen: Arc<Mutex<Vec<Attempt>>>,
    stopped_by: Arc<Mutex<Option<StopReason>>>,
    started: Arc<Notify>,
}

#[async_trait]
impl Job for Script {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        self.seen.lock().unwrap().push((ctx.occurrence.scheduled_at, ctx.attempt));
        let act = self.acts.lock().unwrap().pop_front().unwrap_or(Act::Done);
        self.started.notify_one();
        match act {
            Act::Done => Ok(Outcome::done(1)),
            Act::Fail => Err(JobError::retry("boom")),
            Act::WaitForStop => {
                let reason = ctx.stopped().await;
                *self.stopped_by.lock().unwrap() = Some(reason);
                Ok(Outcome::Interrupted { items: 0 })
            }
            Act::Sleep(time) => {
                ctx.clock().sleep(time).await;
                Ok(Outcome::done(1))
            }
            Act::Hang => std::future::pending().await,
        }
    }
}

struct World {
    clock: ManualClock,
    store: MemoryStore,
    script: Script,
    scheduler: Scheduler,
}

impl World {
    fn new(now: &str, acts: &[Act], change: impl FnOnce(&mut JobSpec)) -> Self {
        let clock = ManualClock::at(at(now));
        let store = MemoryStore::new(Arc::new(clock.clone()));
        let script =
            Script { acts: Arc::new(Mutex::new(acts.iter().copied().collect())), ..Script::default() };
        let mut world = Self { scheduler: build(&store, &clock, &script, |_| {}), clock, store, script };
        world.scheduler = build(&world.store, &world.clock, &world.script, change);
        world
    }

    async fn tick(&self) {
        self.scheduler.tick();
        self.scheduler.idle().await;
    }

    async fn tick_at(&self, clock: &str) {
        self.clock.advance((at(clock) - self.clock.now()).to_std().expect("forwards"));
        self.tick().await;
    }

    fn seen(&self) -> Vec<Attempt> {
        self.script.seen.lock().unwrap().clone()
    }

    fn statuses(&self) -> Vec<RunStatus> {
        self.store.runs().iter().map(|run| run.status).collect()
    }
}

fn build(
    store: &MemoryStore,
    clock: &ManualClock,
    script: &Script,
    change: impl FnOnce(&mut JobSpec),
) -> Scheduler {
    let mut registry = Registry::new();
    let script = script.clone();
    registry.register("script", move |_: billing_scheduler::serde_json::Value| script.clone());
    let mut spec = JobSpec::new("job", "script", Schedule::every(Duration::from_hours(1)).expect("valid"));
    change(&mut spec);
    Scheduler::build(&registry, [(spec, json!({}))], Arc::new(store.clone()), Arc::new(clock.clone()))
        .expect("known kind")
}

#[tokio::test]
async fn job_runs_at_scheduled_time() {
    let world = World::new("13:30:00", &[], |_| {});
    world.tick().await;
    world.tick_at("13:59:58").await;
    assert!(world.seen().is_empty());
    world.tick_at("14:00:00").await;
    world.tick_at("14:00:01").await;
    assert_eq!(world.seen(), [(at("14:00:00"), 1)]);
}

#[tokio::test]
async fn tick_starts_upcoming_run_at_instant() {
    let world = World::new("13:30:00", &[], |_| {});
    world.tick().await;
    world.clock.advance(Duration::from_millis(29 * 60_000 + 59_400));
    world.scheduler.tick();
    tokio::task::yield_now().await;
    assert!(world.seen().is_empty(), "armed, not fired");
    world.clock.advance(Duration::from_millis(600));
    world.scheduler.idle().await;
    let run = &world.store.runs()[0];
    assert_eq!((run.scheduled_at, run.started_at), (at("14:00:00"), at("14:00:00")));
}

#[tokio::test]
async fn run_at_start_runs_new_job_immediately() {
    let world = World::new("13:30:00", &[], |spec| spec.run_at_start = true);
    world.tick().await;
    assert_eq!(world.seen(), [(at("13:00:00"), 1)]);
}

#[tokio::test]
async fn outage_is_coalesced_into_latest_time() {
    let world = World::new("13:30:00", &[], |_| {});
    world.tick().await;
    world.tick_at("17:10:00").await;
    assert_eq!(world.seen(), [(at("17:00:00"), 1)]);
    assert_eq!(
        world.store.runs()[0].reason.as_deref(),
        Some("covers every scheduled time since 2026-01-05 14:00:00 UTC")
    );
}

#[tokio::test]
async fn failure_is_retried_and_recorded() {
    let world = World::new("13:59:00", &[Act::Fail, Act::Fail], |_| {});
    world.tick().await;
    for clock in ["14:00:00", "14:00:10", "14:00:15", "14:00:30", "14:00:45"] {
        world.tick_at(clock).await;
    }
    assert_eq!(world.seen(), [(at("14:00:00"), 1), (at("14:00:00"), 2), (at("14:00:00"), 3)]);
    assert_eq!(world.statuses(), [RunStatus::Retrying, RunStatus::Retrying, RunStatus::Done]);
}

#[tokio::test]
async fn dead_letter_does_not_stop_schedule() {
    let world = World::new("13:59:00", &[Act::Fail], |spec| spec.retry.max_attempts = 1);
    world.tick().await;
    world.tick_at("14:00:00").await;
    world.tick_at("15:00:00").await;
    assert_eq!(world.statuses(), [RunStatus::Dead, RunStatus::Done]);
}

#[tokio::test]
async fn timeout_fails_run_that_stops() {
    for act in [Act::WaitForStop, Act::Hang] {
        let world = World::new("13:59:00", &[act], |_| {});
        world.tick().await;
        world.clock.advance(Duration::from_mins(1));
        world.scheduler.tick();
        world.script.started.notified().await;
        // Renewals continue, like those of the daemon's thread.
        let mut idle = Box::pin(world.scheduler.idle());
        for _ in 0..700 {
            tokio::select! {
                biased;
                () = &mut idle => break,
                () = tokio::task::yield_now() => {}
            }
            world.clock.advance(Duration::from_secs(1));
            world.scheduler.renew_leases().await;
        }
        assert_eq!(world.statuses(), [RunStatus::Retrying]);
        assert_eq!(world.store.runs()[0].error.as_deref(), Some("the run exceeded its timeout of 600 s"));
    }
}

impl World {
    /// Returns a world whose job is running with this behaviour.
    async fn running(act: Act) -> Self {
        let world = Self::new("13:59:00", &[act], |_| {});
        world.tick().await;
        world.clock.advance(Duration::from_mins(1));
        world.scheduler.tick();
        world.script.started.notified().await;
        world
    }
}

#[tokio::test]
async fn drain_completes_runs_before_timeout() {
    let world = World::running(Act::Sleep(Duration::from_secs(59))).await;
    let drain = world.scheduler.drain(Duration::from_mins(1));
    let pass_time = async {
        for second in 1..=59 {
            tokio::task::yield_now().await;
            world.clock.advance(Duration::from_secs(1));
            world.scheduler.tick();
            assert_eq!(world.seen().len(), 1, "nothing starts in second {second}");
        }
    };
    let (report, ()) = tokio::join!(drain, pass_time);
    assert_eq!(report, DrainReport { abandoned: 0 });
    assert_eq!(world.statuses(), [RunStatus::Done]);
    assert_eq!(*world.script.stopped_by.lock().unwrap(), None, "the run was not requested to stop");
}

/// After the drain timeout, and at an interrupt before it.
#[tokio::test]
async fn drain_timeout_or_interrupt_stops_runs() {
    for is_interrupted in [false, true] {
        let world = World::running(Act::WaitForStop).await;
        let drain = world.scheduler.drain(Duration::from_secs(5));
        let pass_time = async {
            tokio::task::yield_now().await;
            world.clock.advance(Duration::from_secs(4));
            tokio::task::yield_now().await;
            assert_eq!(*world.script.stopped_by.lock().unwrap(), None, "the run continues");
            if is_interrupted {
                world.scheduler.interrupt();
            } else {
                world.clock.advance(Duration::from_secs(1));
            }
        };
        let (report, ()) = tokio::join!(drain, pass_time);
        assert_eq!(report, DrainReport { abandoned: 0 }, "{is_interrupted}");
        assert_eq!(*world.script.stopped_by.lock().unwrap(), Some(StopReason::Drain));
        world.tick_at("14:00:06").await;
        assert_eq!(world.seen().len(), 1, "a drained scheduler starts nothing");

        let next = build(&world.store.as_holder("next"), &world.clock, &world.script, |_| {});
        next.tick();
        next.idle().await;
        assert_eq!(world.seen(), [(at("14:00:00"), 1), (at("14:00:00"), 1)], "no attempt is counted");
        assert_eq!(world.statuses(), [RunStatus::Interrupted, RunStatus::Done]);
    }
}

/// Catch-up runs follow one another under one claim.
#[tokio::test]
async fn drain_starts_no_further_catch_up_run() {
    let act = Act::Sleep(Duration::from_secs(1));
    let world = World::new("13:59:00", &[act, act], |spec| spec.misfire = Misfire::CatchUp);
    world.tick().await;
    world.clock.advance(Duration::from_hours(3));
    world.scheduler.tick();
    world.script.started.notified().await;
    let drain = world.scheduler.drain(Duration::from_mins(1));
    let pass_time = async {
        tokio::task::yield_now().await;
        world.clock.advance(Duration::from_secs(1));
    };
    let (report, ()) = tokio::join!(drain, pass_time);
    assert_eq!(report, DrainReport { abandoned: 0 });
    assert_eq!(world.seen().len(), 1, "the other two wait for the next process");
}

#[tokio::test]
async fn unstoppable_run_is_abandoned_after_grace() {
    let world = World::running(Act::Hang).await;
    let drain = world.scheduler.drain(Duration::from_mins(1));
    let pass_time = async {
        for step in [Duration::from_mins(1), STOP_GRACE] {
            tokio::task::yield_now().await;
            world.clock.advance(step);
        }
    };
    let (report, ()) = tokio::join!(drain, pass_time);
    assert_eq!(report, DrainReport { abandoned: 1 });
}

#[tokio::test]
async fn two_daemons_share_each_occurrence() {
    let world = World::new("13:59:00", &[], |_| {});
    let other = build(&world.store.as_holder("other"), &world.clock, &world.script, |_| {});
    for minute in 0..240 {
        world.clock.set_wall(at("13:59:00") + TimeDelta::minutes(minute));
        for scheduler in [&world.scheduler, &other] {
            scheduler.tick();
        }
        world.scheduler.idle().await;
        other.idle().await;
    }
    let times: Vec<_> = world.seen().into_iter().map(|(time, _)| time).collect();
    assert_eq!(times, [at("14:00:00"), at("15:00:00"), at("16:00:00"), at("17:00:00")]);
}

#[tokio::test]
async fn lost_lease_stops_unrecorded_run() {
    let world = World::new("13:59:00", &[Act::WaitForStop], |_| {});
    world.tick().await;
    world.clock.advance(Duration::from_mins(1));
    world.scheduler.tick();
    world.script.started.notified().await;
    // The lease expires without a renewal, and another daemon claims the job.
    world.clock.advance(Duration::from_secs(11));
    let other = world.store.as_holder("other");
    assert!(matches!(other.acquire("job", at("13:00:00")).await, Ok(Claim::Held(_))));
    world.scheduler.renew_leases().await;
    world.scheduler.idle().await;
    assert_eq!(*world.script.stopped_by.lock().unwrap(), Some(StopReason::LeaseLost));
    assert!(world.store.runs().is_empty());
}

#[tokio::test]
async fn holder_stops_before_lease_ends() {
    let clock = ManualClock::at(at("14:00:00"));
    let occurrence = Occurrence { job: "job".to_owned(), scheduled_at: at("14:00:00") };
    let ctx = JobContext::new(occurrence, 1, FencingToken(1), Arc::new(clock.clone()), StopHandle::new());
    ctx.stop_handle().trust_lease_until(Duration::from_secs(8));
    clock.advance(Duration::from_millis(7_999));
    assert_eq!(ctx.stop_requested(), None);
    clock.advance(Duration::from_millis(1));
    assert_eq!(ctx.stop_requested(), Some(StopReason::LeaseLost));

    ctx.stop_handle().stop(StopReason::Drain);
    ctx.stop_handle().trust_lease_until(Duration::from_mins(1));
    assert_eq!(ctx.stop_requested(), Some(StopReason::Drain), "a renewed lease ends no stop");
}

#[tokio::test]
async fn node_job_runs_on_each_daemon() {
    let node = |spec: &mut JobSpec| spec.scope = Scope::Node;
    let world = World::new("13:59:00", &[], node);
    let other = build(&world.store.as_holder("other"), &world.clock, &world.script, node);
    for clock in ["13:59:00", "14:00:00", "15:00:00"] {
        world.tick_at(clock).await;
        other.tick();
        other.idle().await;
    }
    assert_eq!(world.seen().len(), 4);
}

#[tokio::test]
async fn many_late_jobs_all_run() {
    let clock = ManualClock::at(at("13:59:00"));
    let store = MemoryStore::new(Arc::new(clock.clone()));
    let script = Script::default();
    let mut registry = Registry::new();
    let made = script.clone();
    registry.register("script", move |_: billing_scheduler::serde_json::Value| made.clone());
    let hourly = Schedule::every(Duration::from_hours(1)).expect("valid");
    let specs =
        (0..2_000).map(|job| (JobSpec::new(format!("job {job}"), "script", hourly.clone()), json!({})));
    let scheduler = Scheduler::build(&registry, specs, Arc::new(store.clone()), Arc::new(clock.clone()))
        .expect("known kind");
    scheduler.tick();
    scheduler.idle().await;
    assert_eq!(store.jobs().await.expect("it answers").len(), 2_000, "one tick looks at each");
    clock.advance(Duration::from_mins(10));
    scheduler.tick();
    scheduler.idle().await;
    assert_eq!(script.seen.lock().unwrap().len(), 2_000, "one tick runs each");
    assert_eq!(store.runs().len(), 2_000);
}

/// Ends after a duration of its clock.
struct Takes(Duration);

#[async_trait]
impl Job for Takes {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        ctx.clock().sleep(self.0).await;
        Ok(Outcome::done(1))
    }
}

/// Runs every task that does not wait for the clock.
async fn apply_outcome() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn secondly_job_starts_at_instant() {
    for phase_ms in [0, 1, 500, 751, 990, 999] {
        for takes_ms in [0, 300, 990] {
            let clock = ManualClock::at(at("10:00:00"));
            clock.advance(Duration::from_millis(phase_ms));
            let store = MemoryStore::new(Arc::new(clock.clone()));
            let mut registry = Registry::new();
            registry.register("takes", move |_: serde_json::Value| Takes(Duration::from_millis(takes_ms)));
            let every = Schedule::every(Duration::from_secs(1)).expect("a period");
            let mut specs = Vec::new();
            for scope in [Scope::Cluster, Scope::Node] {
                let grace = Some(Duration::from_millis(50));
                let spec = JobSpec::new(format!("{scope:?}"), "takes", every.clone());
                specs.push((JobSpec { scope, misfire_grace: grace, ..spec }, json!({})));
            }
            let scheduler =
                Scheduler::build(&registry, specs, Arc::new(store.clone()), Arc::new(clock.clone()))
                    .expect("a known kind");
            // Ticks at this phase of each second. The clock advances by 10 ms at most, so that it reaches each tick and each instant.
            let mut now_ms = phase_ms;
            while now_ms < 6_000 {
                if now_ms % 1_000 == phase_ms {
                    scheduler.tick();
                    apply_outcome().await;
                }
                let to_tick = 1_000 - (now_ms + 1_000 - phase_ms) % 1_000;
                let step = to_tick.min(1_000 - now_ms % 1_000).min(10);
                clock.advance(Duration::from_millis(step));
                now_ms += step;
                apply_outcome().await;
            }
            let case = format!("ticks at {phase_ms} ms, runs of {takes_ms} ms");
            for job in ["Cluster", "Node"] {
                let runs: Vec<_> = store.runs().into_iter().filter(|run| run.job == job).collect();
                assert!(runs.len() > 3, "{case}: {job} has {} runs", runs.len());
                for run in runs {
                    assert_eq!(run.status, RunStatus::Done, "{case}: {job} at {}", run.scheduled_at);
                    assert_eq!(run.started_at, run.scheduled_at, "{case}: {job}");
                }
            }
        }
    }
}
