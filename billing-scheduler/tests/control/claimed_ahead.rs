//! Events between an early claim and the instant of the run.

use std::time::Duration;

use billing_scheduler::ControlReceipt;

use crate::support::{World, at, registry};

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
async fn pause_after_early_claim_prevents_run() {
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
async fn cancel_after_early_claim_prevents_run() {
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
async fn removal_after_early_claim_prevents_run() {
    let world = claimed_ahead().await;
    world.scheduler.reload(&registry(&world.script), [], |_| false).unwrap();
    world.clock.advance(Duration::from_millis(500));
    world.scheduler.idle().await;
    world.two_seconds().await;
    assert!(world.history().is_empty());
}

#[tokio::test]
async fn drain_does_not_wait_for_future_instant() {
    let world = claimed_ahead().await;
    let report = world.scheduler.drain(Duration::from_mins(1)).await;
    assert_eq!(report.abandoned, 0);
    assert_eq!(world.control.jobs().await.unwrap()[0].lease, None, "its lease is free");
    assert!(world.history().is_empty());
}

#[tokio::test]
async fn clock_set_back_releases_early_claim() {
    let world = claimed_ahead().await;
    world.clock.set_wall(at("12:00:00"));
    world.clock.advance(Duration::from_millis(500));
    world.scheduler.idle().await;
    assert_eq!(world.control.jobs().await.unwrap()[0].lease, None);
    assert!(world.history().is_empty());
}

#[tokio::test]
async fn times_due_during_wait_are_coalesced() {
    let world = claimed_ahead().await;
    world.clock.set_wall(at("17:00:30"));
    world.clock.advance(Duration::from_millis(500));
    world.scheduler.idle().await;
    assert_eq!(world.history(), ["done schedule 17:00 4 since 14:00"]);
}
