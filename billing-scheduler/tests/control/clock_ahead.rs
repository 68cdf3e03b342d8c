//! A schedule that is finished up to a future time, because a clock was ahead.

use billing_scheduler::{Clock, ControlReceipt, Scope, chrono::TimeDelta};

use crate::support::{World, at};

/// The run of the next day, which the hours before it are coalesced into.
const RUN_AHEAD: &str = "done schedule 10:00 24 since 11:00";

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
async fn job_ahead_waits_until_reset() {
    let world = ran_ahead(Scope::Cluster).await;
    let row = &world.control.jobs().await.unwrap()[0];
    let ahead = row.ahead(world.clock.now()).expect("its cursor is in the future");
    assert_eq!(
        ahead.to_string(),
        "waits until 2026-01-06T11:00:00Z: its schedule is finished up to 2026-01-06T10:00:00Z, and the clock was set back since"
    );
    world.tick_at("11:00:00").await;
    assert_eq!(world.history(), ["done schedule 10:00", RUN_AHEAD], "11:00 is finished with");
    assert_eq!(
        world.control.reset("job", "the host was a day ahead").await.unwrap(),
        ControlReceipt::Accepted
    );
    world.two_seconds().await;
    assert_eq!(world.history()[2..], ["skipped manual 11:00"]);
    let runs = world.store.runs();
    assert_eq!(
        runs[2].reason.as_deref(),
        Some("reset by ada: the host was a day ahead; the schedule was finished up to 2026-01-06T10:00:00Z")
    );
    world.tick_at("12:00:00").await;
    assert_eq!(world.history()[3..], ["done schedule 12:00"]);
    assert!(world.control.jobs().await.unwrap()[0].ahead(world.clock.now()).is_none());
    let needless = world.control.reset("job", "again").await.unwrap();
    assert!(matches!(needless, ControlReceipt::Unchanged(_)), "{needless:?}");
    // The scheduled time that has already run is due again on the next day: it runs once more and is recorded as skipped.
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
    // The clock of this daemon may be slow and that of another one correct, so the shared state does not move back automatically.
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
    assert_eq!(ran, ["done schedule 10:00", RUN_AHEAD, "skipped manual 10:30", "done schedule 11:00"]);
}
