//! Events while a response of the store is delayed, and while it does not respond.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{Clock as _, Control, ControlReceipt, JobSpec, Misfire, StopReason, StoreError};
use tokio::sync::Notify;

use super::{
    intercepted::{Around, Intercepted},
    support::{Act, World, at, daemon, hourly},
};

/// Delays the next response to one call until the test releases it, and fails some calls.
#[derive(Clone, Default)]
struct SlowAnswers {
    slow: Arc<Mutex<Option<&'static str>>>,
    unavailable: Arc<Mutex<&'static [&'static str]>>,
    polls: Arc<Mutex<u32>>,
    called: Arc<Notify>,
    proceed: Arc<Notify>,
}

impl SlowAnswers {
    fn keep(&self, call: &'static str) {
        *self.slow.lock().unwrap() = Some(call);
    }

    fn fail(&self, calls: &'static [&'static str]) {
        *self.unavailable.lock().unwrap() = calls;
    }
}

#[async_trait]
impl Around for SlowAnswers {
    fn before(&self, call: &'static str) -> Result<(), StoreError> {
        *self.polls.lock().unwrap() += u32::from(call == "poll");
        if self.unavailable.lock().unwrap().contains(&call) {
            return Err(StoreError::Unavailable("no response".into()));
        }
        Ok(())
    }

    async fn after(&self, call: &'static str) {
        let is_slow = self.slow.lock().unwrap().take_if(|slow| *slow == call).is_some();
        if is_slow {
            self.called.notify_one();
            self.proceed.notified().await;
        }
    }
}

/// Returns a world whose store can delay a response.
fn slow_world(acts: &[Act], change: impl FnOnce(&mut JobSpec)) -> (World, SlowAnswers) {
    let world = World::new("13:30:00", acts, |_| {});
    let mut spec = JobSpec::new("job", "script", hourly());
    change(&mut spec);
    let answers = SlowAnswers::default();
    let store = Intercepted { store: world.store.clone(), around: answers.clone() };
    let scheduler = daemon(&store, &world.clock, &world.script, spec);
    (World { scheduler, ..world }, answers)
}

#[tokio::test]
async fn delayed_cancellation_spares_next_claim() {
    let (world, store) = slow_world(&[Act::Pause, Act::WaitForStop], |_| {});
    world.tick().await;
    world.begin_at("14:00:00").await;
    world.control.cancel("job", None).await.unwrap();
    store.keep("poll");
    world.scheduler.tick();
    store.called.notified().await;
    // The run ends and the next one starts before the response arrives.
    world.script.proceed.notify_one();
    while world.history().is_empty() {
        tokio::task::yield_now().await;
    }
    world.begin_at("15:00:00").await;
    store.proceed.notify_one();
    world.poll().await;
    world.scheduler.drain(Duration::ZERO).await;
    assert_eq!(world.history(), ["done schedule 14:00", "interrupted schedule 15:00"]);
    assert_eq!(*world.script.stopped_by.lock().unwrap(), Some(StopReason::Drain));
}

#[tokio::test]
async fn delayed_cancellation_spares_next_run() {
    let (world, store) = slow_world(&[Act::Pause, Act::WaitForStop], |spec| spec.misfire = Misfire::CatchUp);
    world.tick().await;
    world.begin_at("15:00:00").await;
    world.control.cancel("job", None).await.unwrap();
    store.keep("poll");
    world.scheduler.tick();
    store.called.notified().await;
    // The run of 14:00 ends and that of 15:00 starts before the response arrives.
    world.script.proceed.notify_one();
    world.script.started.notified().await;
    store.proceed.notify_one();
    world.poll().await;
    world.scheduler.drain(Duration::ZERO).await;
    assert_eq!(world.history(), ["done schedule 14:00", "interrupted schedule 15:00"]);
    assert_eq!(*world.script.stopped_by.lock().unwrap(), Some(StopReason::Drain));
}

#[tokio::test]
async fn cancellation_before_claim_answer_stops_run() {
    let (world, store) = slow_world(&[], |_| {});
    world.tick().await;
    world.clock.set_wall(at("14:00:00"));
    store.keep("acquire");
    world.scheduler.tick();
    store.called.notified().await;
    world.control.cancel("job", Some("no")).await.unwrap();
    world.poll().await;
    store.proceed.notify_one();
    world.scheduler.idle().await;
    assert_eq!(world.history(), ["interrupted schedule 14:00"]);
}

#[tokio::test]
async fn retry_starting_during_cancellation_stops() {
    let world = World::new("13:30:00", &[Act::Fail, Act::WaitForStop], |_| {});
    let store = SlowAnswers::default();
    let slow = Intercepted { store: world.store.clone(), around: store.clone() };
    let bob = Control::new(Arc::new(slow), Arc::new(world.clock.clone()), "bob");
    world.tick().await;
    world.begin_at("14:00:00").await;
    world.scheduler.idle().await;
    assert_eq!(world.history(), ["retrying schedule 14:00"]);
    store.keep("jobs");
    let cancelled = tokio::spawn(async move { bob.cancel("job", None).await });
    store.called.notified().await;
    world.begin_at("14:10:00").await;
    store.proceed.notify_one();
    assert_eq!(cancelled.await.unwrap().unwrap(), ControlReceipt::Accepted);
    world.two_seconds().await;
    assert_eq!(world.history()[1..], ["interrupted schedule 14:00"]);
    assert_eq!(*world.script.stopped_by.lock().unwrap(), Some(StopReason::Cancelled));
}

/// Advances second by second until the job has run; returns the number of seconds.
async fn seconds_until_done(world: &World) -> u64 {
    let before = world.history().len();
    for seconds in 1..=60 {
        world.clock.advance(Duration::from_secs(1));
        world.tick().await;
        if world.history().len() > before {
            return seconds;
        }
    }
    panic!("the job does not run within a minute: {:?}", world.history());
}

/// By then a job waits for half a minute.
async fn five_minutes_of(failing: &'static [&'static str]) -> (World, SlowAnswers) {
    let (world, store) = slow_world(&[], |_| {});
    world.tick().await;
    store.fail(failing);
    world.tick_at("14:00:00").await;
    for _ in 0..5 * 60 {
        world.clock.advance(Duration::from_secs(1));
        world.tick().await;
    }
    assert_eq!(world.history(), [""; 0]);
    store.fail(&[]);
    (world, store)
}

#[tokio::test]
async fn first_answer_ends_backoff_after_outage() {
    let (world, _) = five_minutes_of(&["acquire", "poll"]).await;
    assert!(seconds_until_done(&world).await <= 2);
}

#[tokio::test]
async fn store_that_only_reads_is_retried_soon() {
    let (world, _) = five_minutes_of(&["acquire"]).await;
    assert!(seconds_until_done(&world).await <= 4);
}

#[tokio::test]
async fn unavailable_service_is_retried_without_limit() {
    let mut acts = vec![Act::Unavailable; 20];
    acts.push(Act::Fail);
    let world = World::new("13:30:00", &acts, |spec| spec.retry.max_attempts = 2);
    world.tick().await;
    world.tick_at("14:00:00").await;
    for failed in 2..=20 {
        assert!(seconds_until_done(&world).await <= 3, "{failed}");
    }
    seconds_until_done(&world).await;
    assert_eq!(world.history(), vec!["retrying schedule 14:00"; 21]);
    seconds_until_done(&world).await;
    let runs = world.store.runs();
    let attempts: Vec<u32> = runs.iter().map(|run| run.attempt).collect();
    assert_eq!(attempts, [vec![1; 21], vec![2]].concat());
    assert_eq!(world.history()[21], "done schedule 14:00");
}

#[tokio::test]
async fn idle_scheduler_polls_less_often() {
    let world = World::new("13:30:00", &[Act::WaitForStop], |_| {});
    let answers = SlowAnswers::default();
    let store = Intercepted { store: world.store.clone(), around: answers.clone() };
    let scheduler = daemon(&store, &world.clock, &world.script, JobSpec::new("job", "script", hourly()));
    scheduler.poll_idle_every(2);
    let polls_of = async |ticks: u32| {
        for _ in 0..ticks {
            world.clock.advance(Duration::from_secs(1));
            scheduler.tick();
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
        std::mem::take(&mut *answers.polls.lock().unwrap())
    };
    assert_eq!(polls_of(1).await, 1);
    assert_eq!(polls_of(4).await, 2);
    answers.fail(&["poll"]);
    assert_eq!(polls_of(4).await, 3, "after a failure each tick polls");
    answers.fail(&[]);
    assert_eq!(polls_of(3).await, 2);

    world.clock.advance((at("14:00:00") - world.clock.now()).to_std().expect("forwards"));
    polls_of(2).await;
    world.script.started.notified().await;
    assert_eq!(polls_of(3).await, 3, "a run can be cancelled within a second");
}
