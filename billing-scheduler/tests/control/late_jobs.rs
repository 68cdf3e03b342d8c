//! Jobs that are late.

use std::time::Duration;

use crate::support::{Act, World, at};

#[tokio::test]
async fn overdue_job_is_late_until_run() {
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
        "job `job` is late: no daemon runs what was due at 2026-01-05 14:00:00 UTC"
    );
    world.control.pause("job", "tea").await.unwrap();
    assert_eq!(late().await, [], "what is paused is not waited for");
    world.control.resume("job", None).await.unwrap();
    world.tick().await;
    assert_eq!(world.history(), ["done schedule 14:00"], "it was due before the pause");
    assert_eq!(late().await, []);
}

#[tokio::test]
async fn endless_run_makes_job_late() {
    let world = World::new("13:59:00", &[Act::Hang], |spec| spec.timeout = Duration::from_hours(2));
    world.tick().await;
    world.begin_at("14:00:00").await;
    let late = async || world.control.late().await.unwrap();
    for minutes in 1..=122 {
        for _ in 0..12 {
            world.clock.advance(Duration::from_secs(5));
            world.scheduler.renew_leases().await;
        }
        // A separate thread renews the lease.
        assert_eq!(late().await.len(), usize::from(minutes > 121), "after {minutes} minutes");
    }
    assert_eq!(late().await[0].held_by.as_deref(), Some("memory"));
}
