//! The front door: jobs from functions and closures, schedules as a program writes them, start and shutdown.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use billing_scheduler::{
    BoxError, Dst, DstFold, IntoSchedule, JobContext, JobError, JobRow, ManualClock, MemoryStore, NewJob,
    Outcome, RunStatus, Schedule, Scheduler, Store, SystemClock,
    chrono::{DateTime, TimeDelta, Utc},
    cron, daily, every,
    serde_json::json,
};
use tokio::sync::{Notify, oneshot};

async fn unit(_: JobContext) {}

async fn fails(_: JobContext) -> Result<(), io::Error> {
    Err(io::Error::other("boom"))
}

async fn counts(_: JobContext) -> Result<Outcome, JobError> {
    Ok(Outcome::done(3))
}

async fn dies(_: JobContext) -> Result<Outcome, BoxError> {
    Err(JobError::fatal("never"))?
}

#[derive(Clone, serde::Deserialize)]
struct Greeting {
    name: String,
}

async fn greet(ctx: JobContext, greeting: Greeting) -> Result<(), JobError> {
    ctx.report(json!(greeting.name));
    Ok(())
}

#[tokio::test]
async fn functions_and_closures_run_as_jobs() {
    let clock = ManualClock::at("2026-01-05T12:00:00Z".parse().unwrap());
    let store = MemoryStore::new(Arc::new(clock.clone()));
    let state = Arc::new(AtomicU32::new(0));
    let shared = Arc::clone(&state);
    let scheduler = Scheduler::builder()
        .clock(clock.clone())
        .store(store.clone())
        .kinds(|kinds| kinds.register_fn("app.greet", greet))
        .job("unit", every("10s"), unit)
        .job("fails", every("10s"), fails)
        .job("counts", every("10s"), counts)
        .job("dies", every("10s"), dies)
        .job("closure", every("10s"), |ctx| async move { ctx.report(json!(ctx.attempt)) })
        .job("captures", every("10s"), move |_| {
            let shared = Arc::clone(&shared);
            async move {
                shared.fetch_add(1, Ordering::SeqCst);
                Ok::<_, BoxError>(())
            }
        })
        .with_job(NewJob::of_kind("typed", every("10s"), "app.greet", json!({ "name": "Ada" })))
        .build()
        .unwrap();
    scheduler.tick();
    scheduler.idle().await;
    clock.advance(Duration::from_secs(10));
    scheduler.tick();
    scheduler.idle().await;

    let mut runs = store.runs();
    runs.sort_by(|a, b| a.job.cmp(&b.job));
    let rows: Vec<_> = runs
        .iter()
        .map(|run| (&*run.job, run.status, run.items, run.error.as_deref(), run.details.clone()))
        .collect();
    let null = || json!(null);
    assert_eq!(
        rows,
        [
            ("captures", RunStatus::Done, 0, None, null()),
            ("closure", RunStatus::Done, 0, None, json!(1)),
            ("counts", RunStatus::Done, 3, None, null()),
            ("dies", RunStatus::Dead, 0, Some("never"), null()),
            ("fails", RunStatus::Retrying, 0, Some("boom"), null()),
            ("typed", RunStatus::Done, 0, None, json!("Ada")),
            ("unit", RunStatus::Done, 0, None, null()),
        ]
    );
    assert_eq!(state.load(Ordering::SeqCst), 1);
}

#[test]
fn builder_schedules_match_explicit_ones() {
    let last = Dst { fold: Some(DstFold::Last), ..Dst::default() };
    let check = |schedule: Result<Schedule, _>, text: &str| {
        assert_eq!(schedule.map(|schedule| schedule.to_string()).as_deref(), Ok(text));
    };
    check(every("90s").into_schedule(), "every 1m 30s");
    check(every(Duration::from_hours(1)).offset("5m").into_schedule(), "every 1h, 5m after");
    check(cron("30 2 * * *").into_schedule(), "30 2 * * * in UTC");
    check(cron("30 2 * * *").timezone("Europe/Berlin").into_schedule(), "30 2 * * * in Europe/Berlin");
    check(daily().into_schedule(), "0 0 0 * * * in UTC");
    let twice = daily().at("09:00").at("17:30:15").on("MON-FRI").timezone("Europe/Berlin").dst(last);
    check(
        twice.into_schedule(),
        "0 0 9 * * MON-FRI in Europe/Berlin, dst-fold last; 15 30 17 * * MON-FRI in Europe/Berlin, dst-fold last",
    );
    check(Schedule::cron("@hourly", "UTC").into_schedule(), "@hourly in UTC");
}

#[test]
fn invalid_job_is_named_by_the_error() {
    let message = |builder: billing_scheduler::SchedulerBuilder| match builder.build() {
        Ok(_) => panic!("it was built"),
        Err(error) => error.to_string(),
    };
    let with = |schedule: Result<Schedule, _>| message(Scheduler::builder().job("report", schedule, unit));
    let invalid = "invalid schedule of job `report`: ";
    for (schedule, reason) in [
        (every("10 parsecs").into_schedule(), "invalid duration `10 parsecs`"),
        (every("1h").offset("2h").into_schedule(), "an offset must be"),
        (cron("99 * * * *").into_schedule(), "invalid cron text `99 * * * *`: minute `99`"),
        (daily().timezone("Mars/Olympus").into_schedule(), "unknown time zone `Mars/Olympus`"),
        (daily().at("25:00").into_schedule(), "invalid time of day `25:00`"),
        (daily().at("2:3:4:5").into_schedule(), "invalid time of day `2:3:4:5`"),
        (daily().at("+2:30").into_schedule(), "invalid time of day `+2:30`"),
    ] {
        let message = with(schedule);
        assert!(message.starts_with(&format!("{invalid}{reason}")), "{message}");
    }
    let twice = Scheduler::builder().job("report", every("1h"), unit).job("report", every("2h"), unit);
    assert_eq!(message(twice), "there is already a job `report`");
    let unknown = NewJob::of_kind("report", every("1h"), "app.report", json!({}));
    assert_eq!(
        message(Scheduler::builder().with_job(unknown)),
        "cannot build job `report`: no plugin registers job kind `app.report` (known: )"
    );
    let untyped = NewJob::of_kind("hello", every("1h"), "app.greet", json!({ "name": 1 }));
    let builder = Scheduler::builder().kinds(|kinds| kinds.register_fn("app.greet", greet)).with_job(untyped);
    let text = message(builder);
    assert!(
        text.starts_with("cannot build job `hello`: parameters of kind `app.greet` at `name`: "),
        "{text}"
    );
}

#[tokio::test]
async fn started_scheduler_runs_until_its_end() {
    let ran = Arc::new(Notify::new());
    let job = Arc::clone(&ran);
    let scheduler = Scheduler::builder()
        .job("quick", every("1s"), move |_| {
            job.notify_one();
            async {}
        })
        .start()
        .unwrap();
    let report = scheduler.run_until(ran.notified()).await;
    assert_eq!(report.abandoned, 0);
}

#[tokio::test]
async fn shutdown_waits_for_running_job() {
    let (started, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let clock = SystemClock;
    let store = MemoryStore::new(Arc::new(clock));
    let job = (Arc::clone(&started), Arc::clone(&finish));
    let slow = NewJob::new("slow", every("1h"), move |_| {
        let (started, finish) = job.clone();
        async move {
            started.notify_one();
            finish.notified().await;
        }
    });
    let slow = slow.configure(|spec| spec.run_at_start = true);
    let scheduler = Scheduler::builder().store(store.clone()).with_job(slow).start().unwrap();
    started.notified().await;
    let shutdown = tokio::spawn(scheduler.shutdown(Duration::from_mins(1)));
    tokio::task::yield_now().await;
    finish.notify_one();
    assert_eq!(shutdown.await.unwrap().abandoned, 0);
    assert_eq!(store.runs().iter().map(|run| run.status).collect::<Vec<_>>(), [RunStatus::Done]);
}

#[tokio::test]
async fn bounded_memory_store_drops_oldest_runs() {
    let clock = ManualClock::at("2026-01-05T12:00:00Z".parse().unwrap());
    let store = MemoryStore::new(Arc::new(clock.clone())).with_history_limit(2);
    let scheduler = Scheduler::builder()
        .clock(clock.clone())
        .store(store.clone())
        .job("often", every("1s"), unit)
        .job("rare", every("3s"), unit)
        .build()
        .unwrap();
    for _ in 0..6 {
        scheduler.tick();
        scheduler.idle().await;
        clock.advance(Duration::from_secs(1));
    }
    let last = |rows: &[JobRow], name: &str| {
        let row = rows.iter().find(|row| row.job == name).unwrap();
        row.last_run.as_ref().map(|row| row.run.scheduled_at)
    };
    let rows = Store::jobs(&store).await.unwrap();
    assert_eq!(store.runs().len(), 2);
    assert_eq!(last(&rows, "often"), Some("2026-01-05T12:00:05Z".parse().unwrap()));
    assert_eq!(last(&rows, "rare"), None, "its run was dropped");
}

/// Returns when the lease of the job ends; `None` if it has none.
fn lease_end(store: &MemoryStore) -> Option<DateTime<Utc>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let rows = runtime.block_on(Store::jobs(store)).unwrap();
    rows.into_iter().next()?.lease.map(|lease| lease.expires_at)
}

/// The job blocks the only thread of the runtime until its lease was renewed.
#[tokio::test]
async fn blocked_runtime_keeps_renewing_leases() {
    let store = MemoryStore::new(Arc::new(SystemClock));
    let watched = store.clone();
    let (sender, renewed) = oneshot::channel();
    let sender = Mutex::new(Some(sender));
    let blocks = NewJob::new("blocks", every("1h"), move |_| {
        let store = watched.clone();
        let is_renewed = std::thread::spawn(move || {
            let first = lease_end(&store).expect("the job runs under a lease");
            loop {
                match lease_end(&store) {
                    None => return false,
                    Some(end) if end - first > TimeDelta::milliseconds(500) => return true,
                    Some(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        let sender = sender.lock().unwrap().take();
        sender.expect("one run").send(is_renewed.join().unwrap()).unwrap();
        async {}
    });
    let blocks = blocks.configure(|spec| spec.run_at_start = true);
    let scheduler = Scheduler::builder().store(store).with_job(blocks).start().unwrap();
    assert!(renewed.await.unwrap(), "the lease expired during the run");
    scheduler.run_until(async {}).await;
}
