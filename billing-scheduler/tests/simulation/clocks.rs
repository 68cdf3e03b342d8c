//! Two rules about clocks that the simulation rarely exercises.

use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    Claim, FencingToken, Job, JobContext, JobError, JobSpec, ManualClock, MemoryStore, Misfire, Occurrence,
    Outcome, Registry, Schedule, Scheduler, StopHandle, StopReason, Store,
    chrono::{DateTime, TimeDelta, Utc},
    serde_json::{Value, json},
};

use crate::event_loop::beginning;

#[tokio::test]
async fn waiting_run_stops_when_lease_ends() {
    let clock = ManualClock::at(beginning());
    let occurrence = Occurrence { job: "each".to_owned(), scheduled_at: beginning() };
    let ctx = JobContext::new(occurrence, 1, FencingToken(1), Arc::new(clock.clone()), StopHandle::new());
    ctx.stop_handle().trust_lease_until(Duration::from_secs(8));
    let mut stopped = pin!(ctx.stopped());
    for second in 1..=11 {
        let early = tokio::select! {
            biased;
            reason = &mut stopped => Some(reason),
            () = tokio::task::yield_now() => None,
        };
        assert_eq!(early, None, "after {} seconds", second - 1);
        clock.advance(Duration::from_secs(1));
        if second == 7 {
            ctx.stop_handle().trust_lease_until(Duration::from_secs(11));
        }
    }
    let in_time = tokio::select! {
        biased;
        reason = &mut stopped => Some(reason),
        () = tokio::task::yield_now() => None,
    };
    assert_eq!(in_time, Some(StopReason::LeaseLost));
}

/// A job that records its scheduled times.
struct RecordsTimes(Arc<Mutex<Vec<DateTime<Utc>>>>);

#[async_trait]
impl Job for RecordsTimes {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(ctx.occurrence.scheduled_at);
        Ok(Outcome::done(1))
    }
}

#[tokio::test]
async fn clock_set_back_does_not_delay_jobs() {
    let clock = ManualClock::at(beginning());
    let store = MemoryStore::new(Arc::new(clock.clone()));
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let mut registry = Registry::new();
    let shared = Arc::clone(&recorded);
    registry.register("records", move |_: Value| RecordsTimes(Arc::clone(&shared)));
    let schedule = Schedule::every(Duration::from_hours(1)).expect("a period");
    let spec = JobSpec { misfire: Misfire::CatchUp, ..JobSpec::new("each", "records", schedule) };
    let specs = [(spec, json!({}))];
    let scheduler = Scheduler::build(&registry, specs, Arc::new(store.clone()), Arc::new(clock.clone()))
        .expect("a known kind");
    scheduler.tick();
    scheduler.idle().await;
    // The clock is three hours ahead while another process holds the lease.
    clock.set_wall(beginning() + TimeDelta::hours(5));
    let other = store.as_holder("other");
    let Ok(Claim::Held(lease)) = other.acquire("each", beginning()).await else {
        panic!("the lease is free")
    };
    scheduler.tick();
    scheduler.idle().await;
    other.release(&lease).await.expect("the lease is held");
    clock.set_wall(beginning() + TimeDelta::hours(2));
    scheduler.tick();
    scheduler.idle().await;
    let due = [1, 2].map(|hours| beginning() + TimeDelta::hours(hours));
    assert_eq!(*recorded.lock().unwrap_or_else(PoisonError::into_inner), due);
}
