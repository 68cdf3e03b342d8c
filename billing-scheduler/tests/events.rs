//! What listeners receive.

use std::{sync::Arc, time::Duration};

use billing_scheduler::{
    Claim, Event, JobError, ManualClock, MemoryStore, NewJob, Retry, RunStatus, Scheduler, SchedulerBuilder,
    Store as _, TestScheduler, chrono::DateTime, every,
};
use tokio::sync::Notify;

const MINUTE: Duration = Duration::from_mins(1);

fn at_noon(builder: SchedulerBuilder) -> TestScheduler {
    TestScheduler::new("2026-01-05T12:00:00Z".parse().unwrap(), builder).unwrap()
}

/// Returns the events so far, as they are printed, with the time of day alone.
async fn lines(events: &mut billing_scheduler::Events) -> Vec<String> {
    let mut lines = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, events.next()).await {
        lines.push(event.to_string().replace("2026-01-05T", ""));
    }
    lines
}

#[tokio::test]
async fn listener_receives_life_of_each_run() {
    let fails = NewJob::new("flaky", every("1m"), |ctx| async move {
        Err::<(), _>(if ctx.attempt < 2 { JobError::retry("boom") } else { JobError::fatal("never") })
    });
    let fails = fails.configure(|spec| {
        spec.retry = Retry { backoff: Duration::from_secs(5), jitter_percent: 0, ..Retry::default() };
    });
    let test = at_noon(Scheduler::builder().with_job(fails));
    let mut events = test.events();
    test.advance(MINUTE + Duration::from_secs(10)).await;
    assert_eq!(
        lines(&mut events).await,
        [
            "scheduled `flaky` for 12:01:00Z",
            "started `flaky` of 12:01:00Z, attempt 1",
            "retrying `flaky` of 12:01:00Z, attempt 1: boom",
            "scheduled `flaky` for 12:01:05Z",
            "started `flaky` of 12:01:00Z, attempt 2",
            "failed `flaky` of 12:01:00Z, attempt 2: never",
            "scheduled `flaky` for 12:02:00Z",
        ]
    );
    let record = test.run_once("flaky", None).await.unwrap();
    assert_eq!(record.status, RunStatus::Dead);
    assert_eq!(
        lines(&mut events).await,
        ["started `flaky` of 12:01:10Z, attempt 1", "failed `flaky` of 12:01:10Z, attempt 1: boom"],
        "a run on request is reported as well"
    );
}

#[tokio::test]
async fn listener_receives_times_without_run() {
    let strict = NewJob::new("strict", every("1m"), |_| async {}).configure(|spec| {
        spec.misfire_grace = Some(Duration::from_secs(5));
    });
    let test = at_noon(Scheduler::builder().with_job(strict).job("paused", every("1h"), |_| async {}));
    test.advance(Duration::from_secs(1)).await;
    test.control("ada").pause("paused", "maintenance").await.unwrap();
    let mut events = test.events();
    // The process is suspended for an hour and a half.
    test.manual_clock().advance(90 * MINUTE + MINUTE / 2);
    test.advance(MINUTE).await;
    test.control("ada").resume("paused", None).await.unwrap();
    test.advance(2 * MINUTE).await;
    let lines = lines(&mut events).await;
    for expected in [
        "missed `strict` of 13:30:00Z and earlier times since 12:01:00Z, 90 in total",
        "finished `strict` of 13:31:00Z, attempt 1",
        "paused `paused` of 13:00:00Z",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(expected)), "{expected}: {lines:?}");
    }
}

#[tokio::test]
async fn slow_listener_loses_oldest_events() {
    let test = at_noon(Scheduler::builder().job("often", every("1s"), |_| async {}));
    let mut events = test.events();
    test.advance(10 * MINUTE).await;
    let Some(Event::Lagged { dropped }) = events.next().await else {
        panic!("the buffer holds 1,024 events")
    };
    let kept = lines(&mut events).await;
    assert_eq!(kept.len(), 1_024);
    assert!((700..=900).contains(&dropped), "three events for each of 600 runs: {dropped}");
    assert_eq!(kept.last().map(String::as_str), Some("scheduled `often` for 12:10:01Z"));
}

/// Of a lost lease, the renewal or the record of the run learns first.
#[tokio::test]
async fn lost_lease_is_reported_once() {
    for renews in [true, false] {
        let clock = ManualClock::at(DateTime::UNIX_EPOCH);
        let store = MemoryStore::new(Arc::new(clock.clone()));
        let started = Arc::new(Notify::new());
        let notify = Arc::clone(&started);
        let slow = NewJob::new("slow", every("1m"), move |ctx| {
            notify.notify_one();
            async move {
                ctx.stopped().await;
            }
        });
        let builder = Scheduler::builder().clock(clock.clone()).store(store.clone()).with_job(slow);
        let scheduler = builder.build().unwrap();
        scheduler.tick();
        scheduler.idle().await;
        clock.advance(MINUTE);
        scheduler.tick();
        started.notified().await;
        let mut events = scheduler.events();
        // The lease expires without a renewal, and another process claims the job.
        clock.advance(Duration::from_secs(11));
        let other = store.as_holder("other");
        assert!(matches!(other.acquire("slow", DateTime::UNIX_EPOCH).await, Ok(Claim::Held(_))));
        if renews {
            scheduler.renew_leases().await;
        }
        scheduler.idle().await;
        let lost = lines(&mut events).await.into_iter().filter(|line| line.starts_with("lost the lease"));
        assert_eq!(
            lost.collect::<Vec<_>>(),
            ["lost the lease of `slow` under fencing token 2"],
            "renews: {renews}"
        );
    }
}

#[tokio::test]
async fn events_end_with_their_scheduler() {
    let test = at_noon(Scheduler::builder());
    let mut events = test.events();
    drop(test);
    assert_eq!(events.next().await, None);
}
