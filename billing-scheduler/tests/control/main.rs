//! What people ask of jobs, on a manual clock: no test here waits for real time.

mod slow_answers;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    Clock, Control, ControlReceipt, Job, JobContext, JobError, JobSpec, ManualClock, MemoryStore, Misfire,
    Outcome, Registry, RunFilter, RunRecord, Schedule, Scheduler, Scope, StopReason, Store,
    chrono::{DateTime, TimeDelta, Utc},
    serde_json::{Value, json},
};
use tokio::sync::Notify;

fn at(clock: &str) -> DateTime<Utc> {
    format!("2026-01-05T{clock}Z").parse().expect("a time of day")
}

#[derive(Clone, Copy)]
enum Act {
    Fail,
    WaitForStop,
    /// Ends well when it is asked to stop.
    Finish,
    /// Ends well when it is told to go on.
    Pause,
    Hang,
}

/// What the runs do, one after the other; nothing when the list is empty.
#[derive(Clone, Default)]
struct Script {
    acts: Arc<Mutex<VecDeque<Act>>>,
    stopped_by: Arc<Mutex<Option<StopReason>>>,
    started: Arc<Notify>,
    go_on: Arc<Notify>,
    /// The identity of each run.
    keys: Arc<Mutex<Vec<String>>>,
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
            Some(Act::WaitForStop) => {
                *self.stopped_by.lock().unwrap() = Some(ctx.stopped().await);
                Ok(Outcome::Interrupted { items: 7 })
            }
            Some(Act::Finish) => {
                ctx.stopped().await;
                Ok(Outcome::done(1))
            }
            Some(Act::Pause) => {
                self.go_on.notified().await;
                Ok(Outcome::done(1))
            }
            Some(Act::Hang) => std::future::pending().await,
        }
    }
}

struct World {
    clock: ManualClock,
    store: MemoryStore,
    script: Script,
    scheduler: Scheduler,
    control: Control,
}

impl World {
    fn new(now: &str, acts: &[Act], change: impl FnOnce(&mut JobSpec)) -> Self {
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

    async fn tick(&self) {
        self.scheduler.tick();
        self.scheduler.idle().await;
    }

    /// Two seconds, in which a scheduler looks twice: whatever was asked for is obeyed then.
    async fn two_seconds(&self) {
        for _ in 0..2 {
            self.clock.advance(Duration::from_secs(1));
            self.tick().await;
        }
    }

    async fn tick_at(&self, clock: &str) {
        self.clock.advance((at(clock) - self.clock.now()).to_std().expect("forwards"));
        self.tick().await;
    }

    /// Advances to `clock`, starts what is due and waits until it has begun.
    async fn begin_at(&self, clock: &str) {
        self.clock.advance((at(clock) - self.clock.now()).to_std().expect("forwards"));
        self.scheduler.tick();
        self.script.started.notified().await;
    }

    /// The scheduler asks what is wished for, while a run is under way.
    async fn ask(&self) {
        self.scheduler.tick();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    async fn go_on(&self) {
        self.script.go_on.notify_one();
        self.scheduler.idle().await;
    }

    /// The history in short: status, trigger, scheduled time, and the first one of a stretch.
    fn history(&self) -> Vec<String> {
        self.store.runs().iter().map(short).collect()
    }
}

fn short(run: &RunRecord) -> String {
    let stretch =
        run.range.map(|stretch| format!(" {} since {}", stretch.count, stretch.from.format("%H:%M")));
    let (status, trigger) = (run.status.as_str(), run.cause.as_str());
    format!("{status} {trigger} {}{}", run.scheduled_at.format("%H:%M"), stretch.unwrap_or_default())
}

fn hourly() -> Schedule {
    Schedule::every(Duration::from_hours(1)).expect("valid")
}

fn registry(script: &Script) -> Registry {
    let mut registry = Registry::new();
    let script = script.clone();
    registry.register("script", move |_: Value| script.clone());
    registry
}

fn daemon(store: &(impl Store + Clone), clock: &ManualClock, script: &Script, spec: JobSpec) -> Scheduler {
    let (store, clock) = (Arc::new(store.clone()), Arc::new(clock.clone()));
    Scheduler::build(&registry(script), [(spec, json!({}))], store, clock).expect("known kind")
}

#[tokio::test]
async fn a_paused_job_leaves_one_row_for_the_pause_and_goes_on_without_a_burst() {
    for misfire in [Misfire::Coalesce, Misfire::CatchUp, Misfire::Skip] {
        let world = World::new("13:30:00", &[], |spec| spec.misfire = misfire);
        world.tick().await;
        assert_eq!(
            world.control.pause("job", "the panel is upgraded").await.unwrap(),
            ControlReceipt::Accepted
        );
        for clock in ["14:00:00", "15:00:00", "16:00:00", "16:30:00"] {
            world.tick_at(clock).await;
        }
        assert!(world.history().is_empty(), "nothing runs while it is paused");
        let again = world.control.pause("job", "again").await.unwrap();
        assert!(
            matches!(again, ControlReceipt::Unchanged(why) if why.contains("paused by ada: the panel is upgraded"))
        );
        assert_eq!(world.control.resume("job", None).await.unwrap(), ControlReceipt::Accepted);
        world.two_seconds().await;
        assert_eq!(world.history(), ["paused schedule 16:00 3 since 14:00"], "{misfire:?}");
        assert_eq!(world.store.runs()[0].reason.as_deref(), Some("paused by ada: the panel is upgraded"));
        world.tick_at("17:00:00").await;
        assert_eq!(world.history()[1..], ["done schedule 17:00"], "{misfire:?}");
    }
}

#[tokio::test]
async fn a_job_is_paused_for_every_process_at_once() {
    let world = World::new("13:30:00", &[], |_| {});
    let spec = JobSpec::new("job", "script", hourly());
    let other = daemon(&world.store.as_holder("other"), &world.clock, &world.script, spec);
    world.tick().await;
    other.tick();
    other.idle().await;
    // Nobody looks between this and the scheduled time.
    world.clock.set_wall(at("13:59:59"));
    world.control.pause("job", "now").await.unwrap();
    world.clock.set_wall(at("14:00:00"));
    world.tick().await;
    other.tick();
    other.idle().await;
    assert!(world.history().is_empty());
}

#[tokio::test]
async fn a_run_by_hand_is_made_once_beside_the_schedule_even_if_the_job_is_paused() {
    let world = World::new("13:30:00", &[], |_| {});
    let spec = JobSpec::new("job", "script", hourly());
    let other = daemon(&world.store.as_holder("other"), &world.clock, &world.script, spec);
    for scheduler in [&world.scheduler, &other] {
        scheduler.tick();
        scheduler.idle().await;
    }
    world.control.pause("job", "tea").await.unwrap();
    let request = world.control.run_now("job", Some("to see it")).await.unwrap();
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(1));
        for scheduler in [&world.scheduler, &other] {
            scheduler.tick();
        }
        world.scheduler.idle().await;
        other.idle().await;
    }
    assert_eq!(world.history(), ["done manual 13:30"]);
    let filter = RunFilter { request: Some(request), ..RunFilter::default() };
    let answer = &world.control.runs(&filter).await.unwrap()[0];
    assert_eq!(answer.run.reason.as_deref(), Some("asked for by ada: to see it"));
    world.control.resume("job", None).await.unwrap();
    world.tick_at("14:00:00").await;
    world.two_seconds().await;
    assert_eq!(world.history()[1..], ["done schedule 14:00"], "the schedule did not notice");
}

#[tokio::test]
async fn request_for_unknown_job_is_refused() {
    let world = World::new("13:30:00", &[], |_| {});
    let bob = Control::new(Arc::new(world.store.clone()), Arc::new(world.clock.clone()), "bob");
    // Known to the scheduler before anything ran, and to the store alone not yet.
    assert!(world.control.run_now("job", None).await.is_ok());
    for (control, job) in [(&world.control, "jbo"), (&bob, "job")] {
        let refused = [
            control.run_now(job, None).await.map(drop),
            control.replay(job, at("12:00:00"), None).await.map(drop),
        ];
        for refused in refused {
            let error = refused.expect_err("nobody knows it");
            assert_eq!(error.to_string(), format!("unknown job `{job}`"));
        }
    }
    assert_eq!(world.store.audit().len(), 1, "what is refused is not written down");
    world.two_seconds().await;
    assert!(bob.run_now("job", None).await.is_ok(), "now the store has seen it");
    let sure = Control::new(Arc::new(world.store.clone()), Arc::new(world.clock.clone()), "eve");
    assert!(sure.with_known_jobs(|job| job == "new").run_now("new", None).await.is_ok());
}

#[tokio::test]
async fn a_run_by_hand_never_overlaps_the_run_under_way() {
    let world = World::new("13:59:00", &[Act::WaitForStop], |_| {});
    world.tick().await;
    world.begin_at("14:00:00").await;
    let scheduled = world.store.runs().len();
    world.control.run_now("job", None).await.unwrap();
    for _ in 0..5 {
        world.clock.advance(Duration::from_secs(1));
        world.scheduler.tick();
        world.scheduler.renew_leases().await;
        tokio::task::yield_now().await;
    }
    assert_eq!(world.store.runs().len(), scheduled, "the first one is still at it");
    world.control.cancel("job", None).await.unwrap();
    world.two_seconds().await;
    assert_eq!(
        world.history(),
        ["interrupted schedule 14:00"],
        "a cancellation withdraws what has not begun"
    );
    world.control.run_now("job", None).await.unwrap();
    world.two_seconds().await;
    assert_eq!(world.history()[1..], ["done manual 14:00"]);
}

#[tokio::test]
async fn a_cancelled_run_stops_is_recorded_so_and_is_not_run_again() {
    for (act, items, error) in [
        (Act::WaitForStop, 7, None),
        (Act::Hang, 0, Some("the run did not stop when it was asked to, and was abandoned")),
    ] {
        let world = World::new("13:59:00", &[act], |_| {});
        world.tick().await;
        world.begin_at("14:00:00").await;
        assert_eq!(
            world.control.cancel("job", Some("wrong prices")).await.unwrap(),
            ControlReceipt::Accepted
        );
        let mut idle = Box::pin(async {
            for _ in 0..40 {
                world.clock.advance(Duration::from_secs(1));
                world.scheduler.tick();
                world.scheduler.renew_leases().await;
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
            }
        });
        (&mut idle).await;
        world.scheduler.idle().await;
        assert_eq!(world.history(), ["interrupted schedule 14:00"]);
        let run = &world.store.runs()[0];
        assert_eq!(run.reason.as_deref(), Some("cancelled by ada: wrong prices"));
        assert_eq!((run.items, run.error.as_deref()), (items, error));
        if items == 7 {
            assert_eq!(*world.script.stopped_by.lock().unwrap(), Some(StopReason::Cancelled));
        }
        world.tick_at("15:00:00").await;
        assert_eq!(world.history()[1..], ["done schedule 15:00"], "the next scheduled time is another one");
    }
}

#[tokio::test]
async fn a_cancellation_of_what_does_not_run_says_so_and_one_of_a_retry_gives_it_up() {
    let world = World::new("13:59:00", &[Act::Fail], |_| {});
    world.tick().await;
    let nothing = ControlReceipt::Unchanged("nobody runs it".to_owned());
    assert_eq!(world.control.cancel("job", None).await.unwrap(), nothing);
    world.tick_at("14:00:00").await;
    assert_eq!(world.control.cancel("job", None).await.unwrap(), ControlReceipt::Accepted);
    world.tick_at("14:30:00").await;
    assert_eq!(world.history(), ["retrying schedule 14:00", "interrupted schedule 14:00"]);
    world.tick_at("15:00:00").await;
    assert_eq!(world.history()[2..], ["done schedule 15:00"]);
}

#[tokio::test]
async fn a_dead_letter_is_replayed_and_fails_without_a_retry() {
    let world = World::new("13:59:00", &[Act::Fail, Act::Fail], |spec| spec.retry.max_attempts = 1);
    world.tick().await;
    world.tick_at("14:00:00").await;
    for _ in 0..2 {
        world.control.replay("job", at("14:00:00"), Some("mended")).await.unwrap();
        world.two_seconds().await;
    }
    assert_eq!(world.history(), ["dead schedule 14:00", "dead replay 14:00", "done replay 14:00"]);
    assert_eq!(world.control.jobs().await.unwrap()[0].state.cursor, at("14:00:00"), "the cursor stays");
}

#[tokio::test]
async fn a_run_by_hand_that_a_shutdown_interrupts_is_made_again() {
    let world = World::new("13:30:00", &[Act::WaitForStop], |_| {});
    world.tick().await;
    world.control.run_now("job", None).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    world.scheduler.tick();
    world.script.started.notified().await;
    world.scheduler.drain(Duration::ZERO).await;
    let spec = JobSpec::new("job", "script", hourly());
    let next = daemon(&world.store.as_holder("next"), &world.clock, &world.script, spec);
    next.tick();
    next.idle().await;
    assert_eq!(world.history(), ["interrupted manual 13:30", "done manual 13:30"]);
    let ids: Vec<_> = world.store.runs().iter().map(|run| run.request.is_some()).collect();
    assert_eq!(ids, [false, true], "only the second answers");
}

#[tokio::test]
async fn idempotency_keys_follow_requests_not_attempts() {
    let acts = [Act::Fail, Act::Fail, Act::WaitForStop];
    let world = World::new("13:59:00", &acts, |spec| {
        spec.retry.max_attempts = 2;
        spec.retry.backoff = Duration::from_secs(1);
    });
    world.tick().await;
    world.tick_at("14:00:00").await;
    world.tick_at("14:00:02").await;
    world.script.started.notified().await;
    // A request that a shutdown interrupts is run again, and stays the same request.
    let mut requests = vec![world.control.run_now("job", None).await.unwrap()];
    world.clock.advance(Duration::from_secs(1));
    world.scheduler.tick();
    world.script.started.notified().await;
    world.scheduler.interrupt();
    world.scheduler.drain(Duration::from_secs(30)).await;
    let spec = JobSpec::new("job", "script", hourly());
    let next = daemon(&world.store.as_holder("next"), &world.clock, &world.script, spec);
    requests.extend([
        world.control.run_now("job", None).await.unwrap(),
        world.control.run_now("job", None).await.unwrap(),
        world.control.replay("job", at("14:00:00"), None).await.unwrap(),
    ]);
    for _ in 0..2 {
        next.tick();
        next.idle().await;
        world.clock.advance(Duration::from_secs(1));
    }
    let scheduled = "job@1767621600".to_owned();
    let [first, second, third, replay] =
        requests.try_into().map(|ids: [_; 4]| ids.map(|id| format!("job@{id}"))).unwrap();
    let expected = [scheduled.clone(), scheduled, first.clone(), first, second, third, replay];
    assert_eq!(*world.script.keys.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_request_that_nobody_took_for_an_hour_is_missed() {
    let world = World::new("13:30:00", &[], |_| {});
    world.control.run_now("job", None).await.unwrap();
    world.clock.advance(Duration::from_secs(3_601));
    world.tick().await;
    assert_eq!(world.history(), ["missed manual 13:30"]);
    let reason = world.store.runs()[0].reason.clone();
    assert_eq!(reason.as_deref(), Some("asked for by ada, and nobody was there for an hour"));
}

#[tokio::test]
async fn a_job_of_each_node_is_paused_on_each_and_run_by_hand_on_one() {
    let node = |spec: &mut JobSpec| {
        spec.scope = Scope::Node;
        spec.misfire = Misfire::CatchUp;
    };
    let world = World::new("13:30:00", &[], node);
    let mut spec = JobSpec::new("job", "script", hourly());
    node(&mut spec);
    let other = daemon(&world.store.as_holder("other"), &world.clock, &world.script, spec);
    let both_at = async |clock: &str| {
        world.tick_at(clock).await;
        other.tick();
        other.idle().await;
    };
    both_at("13:30:00").await;
    world.control.pause("job", "tea").await.unwrap();
    for clock in ["13:59:00", "14:00:00", "15:00:00"] {
        both_at(clock).await;
    }
    assert!(world.history().is_empty());
    world.control.run_now("job", None).await.unwrap();
    both_at("15:00:01").await;
    both_at("15:00:02").await;
    assert_eq!(world.history(), ["done manual 15:00"], "one of them did it");
    world.control.resume("job", None).await.unwrap();
    both_at("15:30:00").await;
    both_at("15:30:01").await;
    assert_eq!(world.history()[1..], ["paused schedule 15:00 2 since 14:00"; 2]);
    both_at("16:00:00").await;
    assert_eq!(world.history()[3..], ["done schedule 16:00"; 2]);
}

#[tokio::test]
async fn a_pause_from_before_the_start_holds_for_a_job_of_each_node() {
    let world = World::new("14:00:00", &[], |spec| {
        spec.scope = Scope::Node;
        spec.run_at_start = true;
    });
    world.control.pause("job", "tea").await.unwrap();
    world.tick().await;
    world.two_seconds().await;
    assert!(world.history().is_empty());
}

#[tokio::test]
async fn a_job_that_should_have_run_is_late_for_everybody_until_it_has() {
    let world = World::new("13:59:00", &[], |_| {});
    world.tick().await;
    let late = async || world.control.late().await.unwrap();
    world.clock.set_wall(at("14:01:00"));
    assert_eq!(late().await, []);
    world.clock.set_wall(at("14:01:01"));
    let found = late().await;
    assert_eq!(found[0].scheduled_at, at("14:00:00"));
    assert_eq!(
        found[0].to_string(),
        "job `job` is late: nobody runs what was due at 2026-01-05 14:00:00 UTC"
    );
    world.control.pause("job", "tea").await.unwrap();
    assert_eq!(late().await, [], "what is paused is not waited for");
    world.control.resume("job", None).await.unwrap();
    world.tick().await;
    assert_eq!(world.history(), ["done schedule 14:00"], "it was due before the pause");
    assert_eq!(late().await, []);
}

#[tokio::test]
async fn a_run_that_does_not_end_makes_its_job_late_although_somebody_is_at_it() {
    let world = World::new("13:59:00", &[Act::Hang], |spec| spec.timeout = Duration::from_hours(2));
    world.tick().await;
    world.begin_at("14:00:00").await;
    let late = async || world.control.late().await.unwrap();
    for minutes in 1..=122 {
        for _ in 0..12 {
            world.clock.advance(Duration::from_secs(5));
            world.scheduler.renew_leases().await;
        }
        // The lease is kept by a thread of its own, whatever the run does.
        assert_eq!(late().await.len(), usize::from(minutes > 121), "after {minutes} minutes");
    }
    assert_eq!(late().await[0].held_by.as_deref(), Some("memory"));
}

#[tokio::test]
async fn everything_that_was_asked_for_is_on_record() {
    let world = World::new("13:30:00", &[], |_| {});
    world.control.pause("job", "tea").await.unwrap();
    world.control.pause("job", "more tea").await.unwrap();
    world.control.run_now("job", None).await.unwrap();
    world.control.resume("job", Some("done")).await.unwrap();
    let audit: Vec<_> = world
        .store
        .audit()
        .into_iter()
        .map(|request| (request.action.as_str(), request.by, request.reason.unwrap_or_default()))
        .collect();
    let ada = || "ada".to_owned();
    assert_eq!(
        audit,
        [
            ("pause", ada(), "tea".to_owned()),
            ("run_now", ada(), String::new()),
            ("resume", ada(), "done".to_owned())
        ]
    );
}

/// A job that is claimed for 14:00, half a second before.
async fn claimed_ahead() -> World {
    let world = World::new("13:30:00", &[], |_| {});
    world.tick().await;
    world.clock.advance(Duration::from_millis(1_799_500));
    world.scheduler.tick();
    let claimed = async {
        while world.control.jobs().await.unwrap()[0].lease.is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), claimed).await.expect("it is claimed");
    assert!(world.history().is_empty());
    world
}

#[tokio::test]
async fn a_job_that_is_paused_between_its_claim_and_its_instant_does_not_run() {
    let world = claimed_ahead().await;
    world.control.pause("job", "wait").await.unwrap();
    world.clock.advance(Duration::from_millis(400));
    world.scheduler.tick();
    tokio::task::yield_now().await;
    world.clock.advance(Duration::from_millis(100));
    world.scheduler.idle().await;
    world.two_seconds().await;
    assert!(world.history().is_empty());
    world.control.resume("job", None).await.unwrap();
    world.two_seconds().await;
    assert_eq!(world.history(), ["paused schedule 14:00"]);
}

#[tokio::test]
async fn a_run_that_is_cancelled_between_its_claim_and_its_instant_is_recorded_and_not_made() {
    let world = claimed_ahead().await;
    assert_eq!(world.control.cancel("job", Some("not today")).await.unwrap(), ControlReceipt::Accepted);
    world.clock.advance(Duration::from_millis(400));
    world.scheduler.tick();
    tokio::task::yield_now().await;
    world.clock.advance(Duration::from_millis(100));
    world.scheduler.idle().await;
    assert_eq!(world.history(), ["interrupted schedule 14:00"]);
    assert_eq!(world.store.runs()[0].reason.as_deref(), Some("cancelled by ada: not today"));
    assert_eq!(world.store.runs()[0].items, 0);
    world.tick_at("15:00:00").await;
    assert_eq!(world.history()[1..], ["done schedule 15:00"]);
}

#[tokio::test]
async fn a_job_that_is_removed_between_its_claim_and_its_instant_does_not_run() {
    let world = claimed_ahead().await;
    world.scheduler.reload(&registry(&world.script), [], |_| false).unwrap();
    world.clock.advance(Duration::from_millis(500));
    world.scheduler.idle().await;
    world.two_seconds().await;
    assert!(world.history().is_empty());
}

#[tokio::test]
async fn a_drain_does_not_wait_for_an_instant_that_is_still_to_come() {
    let world = claimed_ahead().await;
    let report = world.scheduler.drain(Duration::from_mins(1)).await;
    assert_eq!(report.abandoned, 0);
    assert_eq!(world.control.jobs().await.unwrap()[0].lease, None, "its lease is free");
    assert!(world.history().is_empty());
}

#[tokio::test]
async fn a_claim_ahead_is_given_back_when_the_clock_is_set_back() {
    let world = claimed_ahead().await;
    world.clock.set_wall(at("12:00:00"));
    world.clock.advance(Duration::from_millis(500));
    world.scheduler.idle().await;
    assert_eq!(world.control.jobs().await.unwrap()[0].lease, None);
    assert!(world.history().is_empty());
}

#[tokio::test]
async fn what_is_asked_for_is_obeyed_between_two_runs_that_are_caught_up() {
    for pauses in [true, false] {
        let world = World::new("13:30:00", &[Act::Pause], |spec| spec.misfire = Misfire::CatchUp);
        world.tick().await;
        world.begin_at("17:00:00").await;
        if pauses {
            world.control.pause("job", "wait").await.unwrap();
        } else {
            world.scheduler.reload(&registry(&world.script), [], |_| false).unwrap();
        }
        world.ask().await;
        world.go_on().await;
        world.two_seconds().await;
        assert_eq!(world.history(), ["done schedule 14:00"], "three more are due: {pauses}");
    }
}

#[tokio::test]
async fn a_cancellation_that_comes_too_late_leaves_the_next_scheduled_time_alone() {
    let world = World::new("13:30:00", &[Act::Finish], |spec| spec.misfire = Misfire::CatchUp);
    world.tick().await;
    world.begin_at("15:00:00").await;
    world.control.cancel("job", None).await.unwrap();
    world.tick().await;
    world.two_seconds().await;
    assert_eq!(world.history(), ["done schedule 14:00", "done schedule 15:00"]);
}

#[tokio::test]
async fn a_cancellation_is_for_the_claim_that_it_names() {
    let world = World::new("13:30:00", &[Act::Pause, Act::Pause], |_| {});
    world.tick().await;
    world.begin_at("14:00:00").await;
    world.control.cancel("job", None).await.unwrap();
    // Nobody has asked yet, and the run is over.
    world.go_on().await;
    world.begin_at("15:00:00").await;
    world.ask().await;
    world.go_on().await;
    assert_eq!(world.history(), ["done schedule 14:00", "done schedule 15:00"]);
}

#[tokio::test]
async fn a_pause_holds_whatever_the_clock_says_of_its_begin() {
    let world = World::new("13:30:00", &[], |_| {});
    world.tick().await;
    let ahead = Arc::new(ManualClock::at(at("19:00:00")));
    let bob = Control::new(Arc::new(world.store.clone()), ahead, "bob");
    bob.pause("job", "wait").await.unwrap();
    world.tick_at("14:00:00").await;
    assert!(world.history().is_empty());
}

fn each_node(spec: &mut JobSpec) {
    spec.scope = Scope::Node;
    spec.misfire = Misfire::CatchUp;
}

#[tokio::test]
async fn what_one_node_began_and_did_not_finish_is_done_by_another_at_once() {
    let world = World::new("13:30:00", &[Act::WaitForStop], each_node);
    let mut spec = JobSpec::new("job", "script", hourly());
    each_node(&mut spec);
    let other = daemon(&world.store.as_holder("other"), &world.clock, &world.script, spec);
    let other_looks = async || {
        world.clock.advance(Duration::from_secs(1));
        other.tick();
        other.idle().await;
    };
    world.tick().await;
    other_looks().await;
    world.control.run_now("job", None).await.unwrap();
    world.begin_at("13:30:02").await;
    other_looks().await;
    world.scheduler.drain(Duration::ZERO).await;
    other_looks().await;
    other_looks().await;
    assert_eq!(world.history(), ["interrupted manual 13:30", "done manual 13:30"]);
}

#[tokio::test]
async fn what_is_asked_of_a_node_while_it_runs_by_hand_is_not_forgotten() {
    let world = World::new("13:30:00", &[Act::Pause], each_node);
    world.tick().await;
    world.control.run_now("job", None).await.unwrap();
    world.begin_at("13:30:01").await;
    world.control.run_now("job", None).await.unwrap();
    world.ask().await;
    world.go_on().await;
    world.two_seconds().await;
    assert_eq!(world.history(), ["done manual 13:30"; 2]);
}

#[tokio::test]
async fn what_passes_while_a_job_of_each_node_is_not_configured_is_not_due() {
    let world = World::new("13:30:00", &[], each_node);
    world.tick().await;
    world.scheduler.reload(&registry(&world.script), [], |_| false).unwrap();
    world.tick().await;
    world.clock.set_wall(at("17:30:00"));
    let mut spec = JobSpec::new("job", "script", hourly());
    each_node(&mut spec);
    world.scheduler.reload(&registry(&world.script), [(spec, json!({}))], |_| false).unwrap();
    world.two_seconds().await;
    assert_eq!(world.history(), ["rescheduled schedule 17:00 4 since 14:00"]);
}

#[tokio::test]
async fn a_job_of_each_node_that_is_configured_while_it_is_paused_does_not_run() {
    let world = World::new("13:30:00", &[], |_| {});
    world.control.pause("own", "not yet").await.unwrap();
    world.two_seconds().await;
    let mut own = JobSpec::new("own", "script", hourly());
    each_node(&mut own);
    own.run_at_start = true;
    world.scheduler.reload(&registry(&world.script), [(own, json!({}))], |_| false).unwrap();
    world.two_seconds().await;
    assert!(world.history().is_empty());
}

#[tokio::test]
async fn what_became_due_while_an_instant_was_waited_for_is_one_run_with_it() {
    let world = claimed_ahead().await;
    world.clock.set_wall(at("17:00:30"));
    world.clock.advance(Duration::from_millis(500));
    world.scheduler.idle().await;
    assert_eq!(world.history(), ["done schedule 17:00 4 since 14:00"]);
}

#[tokio::test]
async fn the_cancellation_of_a_retry_under_way_is_on_record_once() {
    let world = World::new("13:30:00", &[Act::Fail, Act::WaitForStop], |_| {});
    world.tick().await;
    world.begin_at("14:00:00").await;
    world.scheduler.idle().await;
    world.begin_at("14:10:00").await;
    world.control.cancel("job", None).await.unwrap();
    world.two_seconds().await;
    assert_eq!(world.history()[1..], ["interrupted schedule 14:00"]);
    assert_eq!(world.store.audit().len(), 1);
}

/// How a run of the next day stands for the hours before it.
const LOOKAHEAD: &str = "done schedule 10:00 24 since 11:00";

/// A scheduler whose hourly job ran at 10:00 and, while the clock was a day ahead, at 10:00 of the next day.
async fn ran_ahead(scope: Scope) -> World {
    let world = World::new("09:30:00", &[], |spec| spec.scope = scope);
    world.tick().await;
    world.tick_at("10:00:00").await;
    world.clock.set_wall(at("10:30:00") + TimeDelta::days(1));
    world.two_seconds().await;
    world.clock.set_wall(at("10:30:30"));
    world.two_seconds().await;
    world
}

#[tokio::test]
async fn job_that_ran_ahead_waits_until_reset() {
    let world = ran_ahead(Scope::Cluster).await;
    let row = &world.control.jobs().await.unwrap()[0];
    let ahead = row.ahead(world.clock.now()).expect("its cursor is in the future");
    assert_eq!(
        ahead.to_string(),
        "waits until 2026-01-06T11:00:00Z: its schedule is finished up to 2026-01-06T10:00:00Z, and the clock was set back since"
    );
    world.tick_at("11:00:00").await;
    assert_eq!(world.history(), ["done schedule 10:00", LOOKAHEAD], "11:00 is finished with");
    assert_eq!(
        world.control.reset("job", "the host was a day ahead").await.unwrap(),
        ControlReceipt::Accepted
    );
    world.two_seconds().await;
    assert_eq!(world.history()[2..], ["skipped manual 11:00"]);
    let runs = world.store.runs();
    assert_eq!(
        runs[2].reason.as_deref(),
        Some("reset by ada: the host was a day ahead; it was finished up to 2026-01-06T10:00:00Z")
    );
    world.tick_at("12:00:00").await;
    assert_eq!(world.history()[3..], ["done schedule 12:00"]);
    assert!(world.control.jobs().await.unwrap()[0].ahead(world.clock.now()).is_none());
    let needless = world.control.reset("job", "again").await.unwrap();
    assert!(matches!(needless, ControlReceipt::Unchanged(_)), "{needless:?}");
    // The next day comes, and with it what has run already: it is run once more, and recorded as passed.
    world.clock.set_wall(at("10:00:00") + TimeDelta::days(1));
    world.two_seconds().await;
    world.clock.set_wall(at("11:00:00") + TimeDelta::days(1));
    world.two_seconds().await;
    let last: Vec<_> = world.history()[4..].to_vec();
    assert_eq!(last, ["skipped schedule 10:00", "done schedule 11:00"]);
}

#[tokio::test]
async fn job_first_seen_ahead_waits_until_reset() {
    let world = World::new("09:30:00", &[], |_| {});
    world.clock.set_wall(at("09:30:00") + TimeDelta::days(365));
    world.tick().await;
    world.clock.set_wall(at("09:45:00"));
    world.two_seconds().await;
    // Another daemon's clock may be right and this one slow, so nothing that they share goes back by itself.
    assert!(world.control.jobs().await.unwrap()[0].ahead(world.clock.now()).is_some());
    assert_eq!(world.control.reset("job", "the clock was wrong").await.unwrap(), ControlReceipt::Accepted);
    world.two_seconds().await;
    world.tick_at("10:00:00").await;
    assert_eq!(world.history(), ["skipped manual 09:45", "done schedule 10:00"]);
    assert_eq!(
        world.store.runs()[0].reason.as_deref().map(|reason| &reason[..22]),
        Some("reset by ada: the cloc")
    );
}

#[tokio::test]
async fn node_job_follows_corrected_clock() {
    let world = ran_ahead(Scope::Node).await;
    world.tick_at("11:00:00").await;
    let ran: Vec<_> = world.history();
    assert_eq!(ran, ["done schedule 10:00", LOOKAHEAD, "skipped manual 10:30", "done schedule 11:00"]);
}
