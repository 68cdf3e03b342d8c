//! Jobs that are added, changed and removed while the scheduler runs.

use std::{sync::Arc, time::Duration};

use billing_scheduler::{
    Clock, IntoSchedule, JobContext, ManualClock, MemoryStore, Misfire, NewJob, RunStatus, Scheduler,
    Store as _, daily, every,
};
use tokio::sync::Notify;

struct World {
    clock: ManualClock,
    store: MemoryStore,
    scheduler: Scheduler,
}

impl World {
    /// A scheduler without jobs, at noon.
    async fn new() -> Self {
        let clock = ManualClock::at("2026-01-05T12:00:00Z".parse().unwrap());
        let store = MemoryStore::new(Arc::new(clock.clone()));
        let builder = Scheduler::builder().clock(clock.clone()).store(store.clone());
        let world = Self { clock, store, scheduler: builder.build().unwrap() };
        world.run_due().await;
        world
    }

    async fn run_due(&self) {
        self.scheduler.tick();
        self.scheduler.idle().await;
    }

    async fn advance_to(&self, time: &str) {
        let until = format!("2026-01-05T{time}Z").parse::<billing_scheduler::chrono::DateTime<_>>().unwrap();
        self.clock.advance((until - self.clock.now()).to_std().unwrap());
        self.run_due().await;
    }

    /// The job and the time of day of each run that finished.
    fn done(&self) -> Vec<String> {
        let runs = self.store.runs();
        let done = runs.iter().filter(|run| run.status == RunStatus::Done);
        done.map(|run| format!("{} {}", run.job, run.scheduled_at.format("%H:%M"))).collect()
    }
}

fn job(name: &str, schedule: impl IntoSchedule) -> NewJob {
    NewJob::new(name, schedule, |_: JobContext| async {})
}

#[tokio::test]
async fn added_job_runs_at_next_time() {
    let world = World::new().await;
    world.advance_to("12:30:00").await;
    world.scheduler.add(job("hourly", every("1h"))).unwrap();
    world.scheduler.idle().await;
    // No tick sees the job before its time: adding it is enough.
    world.advance_to("13:00:00").await;
    assert_eq!(world.done(), ["hourly 13:00"]);
}

#[tokio::test]
async fn wrong_names_change_nothing() {
    let world = World::new().await;
    world.scheduler.add(job("hourly", every("1h"))).unwrap();
    let error = |result: Result<(), billing_scheduler::SetupError>| result.unwrap_err().to_string();
    assert_eq!(error(world.scheduler.add(job("hourly", every("1m")))), "there is already a job `hourly`");
    assert_eq!(error(world.scheduler.update(job("daily", every("1m")))), "unknown job `daily`");
    assert_eq!(error(world.scheduler.remove("daily")), "unknown job `daily`");
    let invalid = error(world.scheduler.update(job("hourly", every("soon"))));
    assert!(invalid.starts_with("invalid schedule of job `hourly`: "), "{invalid}");
    let listed: Vec<_> =
        world.scheduler.list().iter().map(|spec| format!("{} {}", spec.name, spec.schedule)).collect();
    assert_eq!(listed, ["hourly every 1h"]);
    assert_eq!(
        world.scheduler.get("hourly").map(|spec| spec.schedule.to_string()).as_deref(),
        Some("every 1h")
    );
    assert_eq!(world.scheduler.get("daily"), None);
}

#[tokio::test]
async fn updated_schedule_never_fires_by_surprise() {
    let world = World::new().await;
    world.scheduler.add(job("a", every("1h"))).unwrap();
    world.scheduler.idle().await;
    world.advance_to("12:59:30").await;
    world.scheduler.update(job("a", every("10m"))).unwrap();
    world.scheduler.idle().await;
    assert_eq!(world.done(), [""; 0], "12:50 had passed before the change");
    world.advance_to("13:00:00").await;
    world.advance_to("13:10:00").await;
    assert_eq!(world.done(), ["a 13:00", "a 13:10"]);
}

#[tokio::test]
async fn update_keeps_missed_time_of_old_schedule() {
    let world = World::new().await;
    world.scheduler.add(job("a", every("1h"))).unwrap();
    world.scheduler.idle().await;
    // 13:00 passes without a tick.
    world.clock.advance(Duration::from_mins(65));
    world.scheduler.update(job("a", daily().at("20:00"))).unwrap();
    world.scheduler.idle().await;
    world.run_due().await;
    assert_eq!(world.done(), ["a 13:00"]);
    world.advance_to("20:00:00").await;
    assert_eq!(world.done(), ["a 13:00", "a 20:00"]);
}

#[tokio::test]
async fn update_follows_misfire_policy_of_job() {
    for (misfire, expected) in [
        (Misfire::CatchUp, &["a 13:00", "a 14:00", "a 15:00"][..]),
        (Misfire::Coalesce, &["a 15:00"]),
        (Misfire::Skip, &[]),
    ] {
        let world = World::new().await;
        let configured = |schedule: &str| job("a", every(schedule)).configure(|spec| spec.misfire = misfire);
        world.scheduler.add(configured("1h")).unwrap();
        world.scheduler.idle().await;
        world.clock.advance(Duration::from_mins(185));
        world.scheduler.update(configured("25m")).unwrap();
        world.scheduler.update(configured("10h")).unwrap();
        world.scheduler.idle().await;
        world.run_due().await;
        assert_eq!(world.done(), expected, "{misfire:?}");
        let hint = world.store.jobs().await.unwrap()[0].claim_hint.clone().unwrap();
        assert_eq!((hint.schedule.as_str(), hint.replaced), ("every 10h", Vec::new()));
    }
}

#[tokio::test]
async fn edit_is_stored_before_missed_times_run() {
    let world = World::new().await;
    let hourly = job("a", every("1h")).configure(|spec| spec.misfire = Misfire::CatchUp);
    world.scheduler.add(hourly).unwrap();
    world.scheduler.idle().await;
    world.clock.advance(Duration::from_mins(125));
    let started = Arc::new(Notify::new());
    let run = Arc::clone(&started);
    let hanging = NewJob::new("a", every("10h"), move |_| {
        run.notify_one();
        std::future::pending::<()>()
    });
    world.scheduler.update(hanging.configure(|spec| spec.misfire = Misfire::CatchUp)).unwrap();
    world.scheduler.tick();
    started.notified().await;
    // The process ends. Three more hours pass until another one continues with the new schedule.
    world.clock.advance(Duration::from_hours(3));
    let again = job("a", every("10h")).configure(|spec| spec.misfire = Misfire::CatchUp);
    let builder = Scheduler::builder().clock(world.clock.clone()).store(world.store.clone());
    let next = World { scheduler: builder.with_job(again).build().unwrap(), ..world };
    next.run_due().await;
    next.run_due().await;
    assert_eq!(next.done(), ["a 13:00", "a 14:00"], "15:00 to 17:00 passed after the edit");
}

#[tokio::test]
async fn removed_job_neither_runs_nor_catches_up() {
    let world = World::new().await;
    world.scheduler.add(job("a", every("1h"))).unwrap();
    world.scheduler.add(job("b", every("1h"))).unwrap();
    world.scheduler.idle().await;
    world.scheduler.remove("a").unwrap();
    world.scheduler.idle().await;
    world.advance_to("13:00:00").await;
    world.advance_to("14:30:00").await;
    assert_eq!(world.done(), ["b 13:00", "b 14:00"]);
    world.scheduler.add(job("a", every("1h"))).unwrap();
    world.scheduler.idle().await;
    assert_eq!(world.done(), ["b 13:00", "b 14:00"], "the times of `a` until now were not due");
    world.advance_to("15:00:00").await;
    assert_eq!(world.done()[2..], ["a 15:00", "b 15:00"].map(str::to_owned));
}

#[tokio::test]
async fn removal_does_not_stop_running_job() {
    let world = World::new().await;
    let (started, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let parts = (Arc::clone(&started), Arc::clone(&finish));
    let slow = NewJob::new("slow", every("1h"), move |_| {
        let (started, finish) = parts.clone();
        async move {
            started.notify_one();
            finish.notified().await;
        }
    });
    world.scheduler.add(slow).unwrap();
    world.scheduler.idle().await;
    world.clock.advance(Duration::from_hours(1));
    world.scheduler.tick();
    started.notified().await;
    world.scheduler.remove("slow").unwrap();
    finish.notify_one();
    world.scheduler.idle().await;
    assert_eq!(world.done(), ["slow 13:00"]);
    world.advance_to("14:00:00").await;
    assert_eq!(world.done(), ["slow 13:00"]);
}

#[tokio::test]
async fn job_in_reused_place_runs_alone() {
    let world = World::new().await;
    for round in 0..50 {
        let name = format!("round-{round}");
        world.scheduler.add(job(&name, every("1h"))).unwrap();
        world.scheduler.idle().await;
        world.scheduler.remove(&name).unwrap();
        world.scheduler.idle().await;
    }
    world.scheduler.add(job("last", every("1h"))).unwrap();
    world.scheduler.idle().await;
    world.advance_to("13:00:00").await;
    assert_eq!(world.done(), ["last 13:00"]);
}
