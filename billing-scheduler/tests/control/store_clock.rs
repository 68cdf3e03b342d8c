//! A host's clock that differs from the store's: the schedules follow the store's.

use std::{sync::Arc, time::Duration};

use billing_scheduler::{
    Clock, ControlReceipt, JobSpec, ManualClock, MemoryStore, Misfire, Schedule, Scheduler, Scope,
    chrono::{DateTime, TimeDelta, Utc},
};

use crate::support::{Script, at, daemon, hourly, short};

/// A scheduler on a host, and a store on another one. Both clocks advance together.
struct TwoHosts {
    host: ManualClock,
    store_clock: ManualClock,
    store: MemoryStore,
    scheduler: Scheduler,
}

impl TwoHosts {
    /// Starts a scheduler at `now` by the store's clock. The host's clock is `ahead` of it.
    fn new(now: &str, ahead: TimeDelta, schedule: Schedule, change: impl FnOnce(&mut JobSpec)) -> Self {
        let store_clock = ManualClock::at(at(now));
        let store = MemoryStore::new(Arc::new(store_clock.clone())).reporting_time();
        let host = ManualClock::at(at(now) + ahead);
        let mut spec = JobSpec { misfire: Misfire::CatchUp, ..JobSpec::new("job", "script", schedule) };
        change(&mut spec);
        let scheduler = daemon(&store, &host, &Script::default(), spec);
        Self { host, store_clock, store, scheduler }
    }

    async fn seconds(&self, seconds: u32) {
        for _ in 0..seconds {
            self.scheduler.tick();
            self.scheduler.idle().await;
            self.host.advance(Duration::from_secs(1));
            self.store_clock.advance(Duration::from_secs(1));
            self.scheduler.idle().await;
        }
    }

    fn history(&self) -> Vec<String> {
        self.store.runs().iter().map(short).collect()
    }

    fn scheduled_times(&self) -> Vec<DateTime<Utc>> {
        self.store.runs().iter().map(|run| run.scheduled_at).collect()
    }
}

const WRONG_CLOCKS: [TimeDelta; 6] = [
    TimeDelta::hours(-2),
    TimeDelta::hours(2),
    TimeDelta::seconds(-6),
    TimeDelta::seconds(6),
    TimeDelta::days(-400),
    TimeDelta::days(400),
];

#[tokio::test]
async fn jobs_run_by_store_clock() {
    for ahead in WRONG_CLOCKS {
        for scope in [Scope::Cluster, Scope::Node] {
            let hosts = TwoHosts::new("09:59:57", ahead, hourly(), |spec| spec.scope = scope);
            hosts.seconds(2).await;
            assert_eq!(hosts.history(), [""; 0], "before the hour, {ahead} ahead");
            hosts.seconds(2).await;
            assert_eq!(hosts.history(), ["done schedule 10:00"], "{ahead} ahead");
            assert_eq!(hosts.store.runs()[0].started_at, at("10:00:00"), "{ahead} ahead");
            assert_eq!(hosts.scheduler.clock().offset(), Some(-ahead));
        }
    }
}

#[tokio::test]
async fn small_difference_is_not_corrected() {
    let ahead = TimeDelta::seconds(4);
    let hosts = TwoHosts::new("09:59:50", ahead, hourly(), |_| {});
    hosts.seconds(8).await;
    assert_eq!(hosts.history(), ["done schedule 10:00"]);
    assert_eq!(hosts.scheduler.clock().offset(), Some(-ahead), "it is measured all the same");
}

#[tokio::test]
async fn local_times_follow_store_clock() {
    let schedule = Schedule::cron("30 2 * * *", "Europe/Berlin").expect("a cron text");
    let hosts = TwoHosts::new("01:29:58", TimeDelta::hours(-2), schedule, |_| {});
    hosts.seconds(4).await;
    // In January, Berlin is an hour ahead of UTC.
    assert_eq!(hosts.scheduled_times(), [at("01:30:00")]);
}

/// Each scheduled time runs once, whatever happens to the host's clock.
#[tokio::test]
async fn set_host_clock_loses_and_repeats_nothing() {
    let every = Schedule::every(Duration::from_secs(10)).expect("a period");
    let hosts = TwoHosts::new("10:00:00", TimeDelta::zero(), every, |_| {});
    for hours in [2, -2, 0, 26, -26, 0] {
        hosts.seconds(7).await;
        hosts.host.set_wall(hosts.store_clock.now() + TimeDelta::hours(hours));
        hosts.seconds(13).await;
    }
    let expected: Vec<_> = (1..=12).map(|n| at("10:00:00") + TimeDelta::seconds(10) * n).collect();
    assert_eq!(hosts.scheduled_times(), expected);
    assert!(hosts.store.runs().iter().all(|run| run.started_at == run.scheduled_at), "none is early or late");
}

#[tokio::test]
async fn store_clock_set_forward_runs_missed_times() {
    let hosts = TwoHosts::new("09:59:58", TimeDelta::zero(), hourly(), |_| {});
    hosts.seconds(5).await;
    hosts.store_clock.set_wall(at("12:30:00"));
    hosts.seconds(3).await;
    assert_eq!(hosts.history(), ["done schedule 10:00", "done schedule 11:00", "done schedule 12:00"]);
    assert_eq!(hosts.scheduler.clock().now(), hosts.store_clock.now());
}

/// Such as when a database fails over to a host with a wrong clock, and back.
#[tokio::test]
async fn store_clock_set_back_resets_schedule() {
    let hosts = TwoHosts::new("09:59:58", TimeDelta::zero(), hourly(), |spec| {
        spec.misfire = Misfire::Coalesce;
    });
    hosts.seconds(5).await;
    hosts.store_clock.set_wall(at("12:30:00"));
    hosts.seconds(5).await;
    hosts.store_clock.set_wall(at("10:59:50"));
    hosts.seconds(15).await;
    assert_eq!(
        hosts.history(),
        [
            "done schedule 10:00",
            "done schedule 12:00 2 since 11:00",
            "skipped manual 10:59",
            "done schedule 11:00"
        ]
    );
    let reset = hosts.store.runs()[2].reason.clone();
    assert_eq!(
        reset.as_deref(),
        Some("the clock was set back; the schedule was finished up to 2026-01-05T12:00:00Z")
    );
    hosts.store_clock.set_wall(at("11:59:58"));
    hosts.seconds(5).await;
    assert_eq!(hosts.history()[4..], ["skipped schedule 12:00"], "it has already run");
}

/// A process that has not seen the store's clock ahead cannot know which clock was wrong.
#[tokio::test]
async fn cursor_after_every_reading_waits() {
    let hosts = TwoHosts::new("12:59:58", TimeDelta::zero(), hourly(), |_| {});
    hosts.seconds(5).await;
    hosts.store_clock.set_wall(at("10:30:00"));
    let spec = JobSpec::new("job", "script", hourly());
    let scheduler = daemon(&hosts.store, &hosts.host, &Script::default(), spec);
    let hosts = TwoHosts { scheduler, ..hosts };
    hosts.seconds(5).await;
    assert_eq!(hosts.history(), ["done schedule 13:00"]);
    let control = hosts.scheduler.control("ada");
    assert_eq!(control.reset("job", "the clock was wrong").await.unwrap(), ControlReceipt::Accepted);
    hosts.seconds(3).await;
    assert_eq!(hosts.history()[1..], ["skipped manual 10:30"]);
}
