//! Events while a response of the store is delayed, and while it does not respond.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    Claim, Clock as _, Control, ControlReceipt, ControlRequest, JobRow, JobSpec, JobState, Lease,
    MemoryStore, Misfire, RunFilter, RunRecord, RunRow, StopReason, Store, StoreError, StorePoll,
    chrono::{DateTime, Utc},
};
use tokio::sync::Notify;

use super::support::{Act, World, at, daemon, hourly};

/// A store whose next response to one call is delayed until the test releases it, or which does not respond to some calls.
#[derive(Clone)]
struct SlowAnswers {
    store: MemoryStore,
    slow: Arc<Mutex<Option<&'static str>>>,
    unavailable: Arc<Mutex<&'static [&'static str]>>,
    polls: Arc<Mutex<u32>>,
    called: Arc<Notify>,
    proceed: Arc<Notify>,
}

impl SlowAnswers {
    fn of(store: &MemoryStore) -> Self {
        Self {
            store: store.clone(),
            slow: Arc::default(),
            unavailable: Arc::default(),
            polls: Arc::default(),
            called: Arc::default(),
            proceed: Arc::default(),
        }
    }

    fn keep(&self, call: &'static str) {
        *self.slow.lock().unwrap() = Some(call);
    }

    fn fail(&self, calls: &'static [&'static str]) {
        *self.unavailable.lock().unwrap() = calls;
    }

    fn ensure_available(&self, call: &'static str) -> Result<(), StoreError> {
        if self.unavailable.lock().unwrap().contains(&call) {
            return Err(StoreError::Unavailable("no response".into()));
        }
        Ok(())
    }

    async fn answer<T>(&self, call: &'static str, answer: T) -> T {
        let is_slow = self.slow.lock().unwrap().take_if(|slow| *slow == call).is_some();
        if is_slow {
            self.called.notify_one();
            self.proceed.notified().await;
        }
        answer
    }
}

#[async_trait]
impl Store for SlowAnswers {
    async fn acquire(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim, StoreError> {
        self.ensure_available("acquire")?;
        let claim = self.store.acquire(job, first_cursor).await;
        self.answer("acquire", claim).await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        self.store.renew(lease).await
    }

    async fn record(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
    ) -> Result<(), StoreError> {
        self.store.record(lease, run, next).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.store.release(lease).await
    }

    async fn poll(&self, known: Option<i64>) -> Result<StorePoll, StoreError> {
        *self.polls.lock().unwrap() += 1;
        self.ensure_available("poll")?;
        let poll = self.store.poll(known).await;
        self.answer("poll", poll).await
    }

    async fn request(&self, request: &ControlRequest) -> Result<ControlReceipt, StoreError> {
        self.store.request(request).await
    }

    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        let jobs = self.store.jobs().await;
        self.answer("jobs", jobs).await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
        Store::runs(&self.store, filter).await
    }
}

/// Returns a world whose store can delay a response.
fn slow_world(acts: &[Act], change: impl FnOnce(&mut JobSpec)) -> (World, SlowAnswers) {
    let world = World::new("13:30:00", acts, |_| {});
    let mut spec = JobSpec::new("job", "script", hourly());
    change(&mut spec);
    let store = SlowAnswers::of(&world.store);
    let scheduler = daemon(&store, &world.clock, &world.script, spec);
    (World { scheduler, ..world }, store)
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
    let store = SlowAnswers::of(&world.store);
    let bob = Control::new(Arc::new(store.clone()), Arc::new(world.clock.clone()), "bob");
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
    let store = SlowAnswers::of(&world.store);
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
        std::mem::take(&mut *store.polls.lock().unwrap())
    };
    assert_eq!(polls_of(1).await, 1);
    assert_eq!(polls_of(4).await, 2);
    store.fail(&["poll"]);
    assert_eq!(polls_of(4).await, 3, "after a failure each tick polls");
    store.fail(&[]);
    assert_eq!(polls_of(3).await, 2);

    world.clock.advance((at("14:00:00") - world.clock.now()).to_std().expect("forwards"));
    polls_of(2).await;
    world.script.started.notified().await;
    assert_eq!(polls_of(3).await, 3, "a run can be cancelled within a second");
}
