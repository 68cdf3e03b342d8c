//! Pausing and resuming jobs.

use std::{sync::Arc, time::Duration};

use billing_scheduler::{
    Claim, Control, ControlReceipt, JobSpec, ManualClock, Misfire, Schedule, Scope, Store, serde_json::json,
};

use crate::support::{World, at, daemon, each_node, hourly, registry};

#[tokio::test]
async fn paused_times_are_recorded_in_one_row() {
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
async fn pause_holds_for_every_process() {
    let world = World::new("13:30:00", &[], |_| {});
    let spec = JobSpec::new("job", "script", hourly());
    let other = daemon(&world.store.as_holder("other"), &world.clock, &world.script, spec);
    world.tick().await;
    other.tick();
    other.idle().await;
    // No scheduler polls between this and the scheduled time.
    world.clock.set_wall(at("13:59:59"));
    world.control.pause("job", "now").await.unwrap();
    world.clock.set_wall(at("14:00:00"));
    world.tick().await;
    other.tick();
    other.idle().await;
    assert!(world.history().is_empty());
}

#[tokio::test]
async fn node_job_respects_pause_before_start() {
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
async fn node_job_is_paused_on_every_node() {
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
async fn pause_with_future_begin_holds_now() {
    let world = World::new("13:30:00", &[], |_| {});
    world.tick().await;
    let ahead = Arc::new(ManualClock::at(at("19:00:00")));
    let bob = Control::new(Arc::new(world.store.clone()), ahead, "bob");
    bob.pause("job", "wait").await.unwrap();
    world.tick_at("14:00:00").await;
    assert!(world.history().is_empty());
}

#[tokio::test]
async fn node_job_added_while_paused_waits() {
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
async fn node_job_readded_skips_absent_times() {
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

/// The fencing token of a claim that is released without a change.
async fn next_fencing_token(world: &World) -> i64 {
    match world.store.acquire("job", at("00:00:00")).await.unwrap() {
        Claim::Held(lease) => {
            world.store.release(&lease).await.unwrap();
            lease.fencing_token.0
        }
        Claim::Busy { holder } => panic!("{holder} has the lease"),
    }
}

#[tokio::test]
async fn paused_job_is_not_claimed() {
    let world = World::new("13:30:00", &[], |_| {});
    world.tick().await;
    world.control.pause("job", "an upgrade").await.unwrap();
    world.two_seconds().await;
    let before = next_fencing_token(&world).await;
    for minute in 31..59 {
        world.tick_at(&format!("13:{minute}:30")).await;
        world.two_seconds().await;
    }
    world.tick_at("14:00:30").await;
    assert_eq!(next_fencing_token(&world).await, before + 1, "no claim in half an hour");
    world.control.run_now("job", None).await.unwrap();
    world.two_seconds().await;
    assert_eq!(world.history(), ["done manual 14:00"], "a request is claimed");
    world.control.resume("job", None).await.unwrap();
    world.two_seconds().await;
    world.tick_at("15:00:00").await;
    assert_eq!(world.history()[1..], ["paused schedule 14:00", "done schedule 15:00"]);
}

#[tokio::test]
async fn schedule_edited_during_pause_is_claimed_twice() {
    let world = World::new("13:30:00", &[], |_| {});
    world.tick().await;
    world.control.pause("job", "an upgrade").await.unwrap();
    world.two_seconds().await;
    let every_half_hour = Schedule::every(Duration::from_mins(30)).expect("valid");
    let spec = JobSpec::new("job", "script", every_half_hour);
    let jobs = [(spec, json!({}))];
    world.scheduler.reload(&registry(&world.script), jobs, |_| false).expect("valid");
    let before = next_fencing_token(&world).await;
    for minute in 31..40 {
        world.tick_at(&format!("13:{minute}:30")).await;
    }
    assert_eq!(
        next_fencing_token(&world).await,
        before + 3,
        "one claim stores the edit, another one decides"
    );
    world.tick_at("14:40:00").await;
    world.control.resume("job", None).await.unwrap();
    world.two_seconds().await;
    assert_eq!(world.history(), ["paused schedule 14:30 2 since 14:00"]);
}
