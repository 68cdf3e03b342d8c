//! Cancelling runs, retries and requests.

use std::time::Duration;

use billing_scheduler::{ControlReceipt, Misfire, StopReason};

use crate::support::{Act, World, registry};

#[tokio::test]
async fn cancelled_run_stops_and_is_not_repeated() {
    for (act, items, error) in [
        (Act::WaitForStop, 7, None),
        (Act::Hang, 0, Some("the run did not stop on request and was abandoned")),
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
async fn cancel_gives_up_pending_retry() {
    let world = World::new("13:59:00", &[Act::Fail], |_| {});
    world.tick().await;
    let nothing = ControlReceipt::Unchanged("no daemon runs it".to_owned());
    assert_eq!(world.control.cancel("job", None).await.unwrap(), nothing);
    world.tick_at("14:00:00").await;
    assert_eq!(world.control.cancel("job", None).await.unwrap(), ControlReceipt::Accepted);
    world.tick_at("14:30:00").await;
    assert_eq!(world.history(), ["retrying schedule 14:00", "interrupted schedule 14:00"]);
    world.tick_at("15:00:00").await;
    assert_eq!(world.history()[2..], ["done schedule 15:00"]);
}

#[tokio::test]
async fn late_cancellation_spares_next_run() {
    let world = World::new("13:30:00", &[Act::Finish], |spec| spec.misfire = Misfire::CatchUp);
    world.tick().await;
    world.begin_at("15:00:00").await;
    world.control.cancel("job", None).await.unwrap();
    world.tick().await;
    world.two_seconds().await;
    assert_eq!(world.history(), ["done schedule 14:00", "done schedule 15:00"]);
}

#[tokio::test]
async fn cancellation_applies_to_named_claim_only() {
    let world = World::new("13:30:00", &[Act::Pause, Act::Pause], |_| {});
    world.tick().await;
    world.begin_at("14:00:00").await;
    world.control.cancel("job", None).await.unwrap();
    // The run has ended before the next poll.
    world.proceed().await;
    world.begin_at("15:00:00").await;
    world.poll().await;
    world.proceed().await;
    assert_eq!(world.history(), ["done schedule 14:00", "done schedule 15:00"]);
}

#[tokio::test]
async fn cancelled_running_retry_is_recorded_once() {
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

#[tokio::test]
async fn request_interrupts_catch_up() {
    for pauses in [true, false] {
        let world = World::new("13:30:00", &[Act::Pause], |spec| spec.misfire = Misfire::CatchUp);
        world.tick().await;
        world.begin_at("17:00:00").await;
        if pauses {
            world.control.pause("job", "wait").await.unwrap();
        } else {
            world.scheduler.reload(&registry(&world.script), [], |_| false).unwrap();
        }
        world.poll().await;
        world.proceed().await;
        world.two_seconds().await;
        assert_eq!(world.history(), ["done schedule 14:00"], "three more are due: {pauses}");
    }
}
