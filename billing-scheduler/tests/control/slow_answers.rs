//! Events while a response of the store is delayed.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    Claim, Control, ControlReceipt, ControlRequest, ControlState, JobRow, JobSpec, JobState, Lease,
    MemoryStore, Misfire, RunFilter, RunRecord, RunRow, StopReason, Store, StoreError,
    chrono::{DateTime, Utc},
};
use tokio::sync::Notify;

use super::support::{Act, World, at, daemon, hourly};

/// A store whose next response to one call is delayed until the test releases it.
#[derive(Clone)]
struct SlowAnswers {
    store: MemoryStore,
    slow: Arc<Mutex<Option<&'static str>>>,
    called: Arc<Notify>,
    proceed: Arc<Notify>,
}

impl SlowAnswers {
    fn of(store: &MemoryStore) -> Self {
        Self { store: store.clone(), slow: Arc::default(), called: Arc::default(), proceed: Arc::default() }
    }

    fn keep(&self, call: &'static str) {
        *self.slow.lock().unwrap() = Some(call);
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

    async fn control_state(&self, known: Option<i64>) -> Result<Option<ControlState>, StoreError> {
        let control_state = self.store.control_state(known).await;
        self.answer("control_state", control_state).await
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
    store.keep("control_state");
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
    store.keep("control_state");
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
