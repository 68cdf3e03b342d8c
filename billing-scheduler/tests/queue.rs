//! Queued jobs of a scheduler: what runs, in which order, and what is recorded.

#[path = "common/intercepted.rs"]
mod intercepted;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    BoxError, EnqueueError, Event, JobContext, JobError, JobSpec, ManualClock, MemoryStore, Middleware,
    NewQueuedJob, Next, Outcome, QueueJob, QueueStore, Retry, RunCause, RunRecord, RunStatus, Scheduler,
    SchedulerBuilder, SetupError, StopReason, SystemClock, TestScheduler,
    chrono::{DateTime, TimeDelta, Utc},
    every, run_due, serde_json,
};
use tokio::sync::{Notify, mpsc, oneshot};

use self::intercepted::Intercepted;

const DAY: Duration = Duration::from_hours(24);

async fn panics(_: JobContext, (): ()) {
    panic!("a bug")
}

/// The parts of a scheduler in virtual time whose store a test shares.
struct World {
    clock: ManualClock,
    store: MemoryStore,
    scheduler: Scheduler,
}

fn world(change: impl FnOnce(SchedulerBuilder) -> SchedulerBuilder) -> World {
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    let store = MemoryStore::new(Arc::new(clock.clone()));
    let builder = Scheduler::builder().clock(clock.clone()).store(store.clone());
    World { clock, store, scheduler: change(builder).build().expect("no job is invalid") }
}

#[tokio::test]
async fn jobs_run_with_their_payloads() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let mail = QueueJob::new("mail", move |ctx: JobContext, (to, copies): (String, u32)| {
        let sink = Arc::clone(&sink);
        async move {
            sink.lock().expect("no run panics").push(format!("{to} x{copies}, {}", ctx.attempt));
            Outcome::done(u64::from(copies))
        }
    });
    let World { store, scheduler, .. } = world(|builder| builder.with_queue_job(mail.concurrency(1)));
    let low = scheduler.enqueue("mail", ("low", 1)).await.expect("it is added");
    scheduler.enqueue("mail", ("high", 2)).priority(1).await.expect("it is added");
    scheduler.enqueue("other", ()).await.expect("it is added");
    run_due(&scheduler).await;
    assert_eq!(*seen.lock().expect("no run panics"), ["high x2, 1", "low x1, 1"]);
    let runs = store.runs();
    assert_eq!(runs.iter().map(|run| run.items).collect::<Vec<_>>(), [2, 1]);
    assert_eq!((runs[1].cause, runs[1].request_id), (RunCause::Queue, low));
}

#[tokio::test]
async fn failed_job_is_retried_until_dead() {
    let retry = Retry { max_attempts: 3, ..Retry::default() };
    let fails = QueueJob::new("fails", |_, ()| async { Err::<(), BoxError>("out of paper".into()) });
    let World { clock, store, scheduler } = world(|builder| {
        builder
            .with_queue_job(fails.retry(retry))
            .with_queue_job(QueueJob::new("panics", panics).retry(retry))
            .queue_job("typed", |_, _: u32| async {})
    });
    for kind in ["fails", "panics"] {
        scheduler.enqueue(kind, ()).await.expect("it is added");
    }
    scheduler.enqueue("typed", "not a number").await.expect("it is added");
    run_due(&scheduler).await;
    run_due(&scheduler).await;
    assert_eq!(store.runs().len(), 3, "retries wait");
    for _ in 0..10 {
        clock.advance(Duration::from_mins(5));
        run_due(&scheduler).await;
    }
    let (retrying, dead) = (RunStatus::Retrying, RunStatus::Dead);
    for (kind, statuses, error) in [
        ("fails", &[retrying, retrying, dead][..], "out of paper"),
        ("panics", &[retrying, retrying, dead], "a bug"),
        ("typed", &[dead], "cannot decode the payload"),
    ] {
        let runs: Vec<_> = store.runs().into_iter().filter(|run| run.job == kind).collect();
        assert_eq!(runs.iter().map(|run| run.status).collect::<Vec<_>>(), statuses, "{kind}");
        assert!(
            runs.iter().all(|run| run.error.as_deref().is_some_and(|text| text.contains(error))),
            "{kind}"
        );
    }
}

#[tokio::test]
async fn unique_job_is_added_after_finish() {
    let World { clock, store, scheduler } = world(|builder| builder.queue_job("report", |_, ()| async {}));
    let add = |key: &'static str| scheduler.enqueue("report", ()).unique_by(key).after(DAY);
    assert!(add("monthly").await.expect("it is added").is_some());
    assert!(add("monthly").await.expect("the store is available").is_none());
    clock.advance(DAY);
    run_due(&scheduler).await;
    assert!(add("monthly").await.expect("it is added").is_some());
    assert_eq!(store.runs()[0].scheduled_at, DateTime::UNIX_EPOCH + DAY);
}

/// A job starts at its exact instant: a fraction of a second is neither cut off nor rounded up.
#[tokio::test]
async fn job_never_starts_early() {
    let World { clock, store, scheduler } = world(|builder| builder.queue_job("wait", |_, _: u32| async {}));
    clock.advance(Duration::from_millis(400));
    let at = DateTime::UNIX_EPOCH + TimeDelta::milliseconds(9_900);
    scheduler.enqueue("wait", 1).at(at).await.expect("it is added");
    scheduler.enqueue("wait", 2).after(Duration::from_millis(10_300)).await.expect("it is added");
    for (step_ms, runs) in [(9_499, 0), (1, 1), (799, 1), (1, 2)] {
        clock.advance(Duration::from_millis(step_ms));
        run_due(&scheduler).await;
        assert_eq!(store.runs().len(), runs, "after another {step_ms} ms");
    }
    let scheduled: Vec<_> = store.runs().iter().map(|run| run.scheduled_at.timestamp()).collect();
    assert_eq!(scheduled, [9, 10], "the scheduled time is the second in which the job is due");
}

/// The process of a job ends in each attempt: the job is given up with a reason and is not run again.
#[tokio::test]
async fn job_that_kills_processes_is_dead() {
    let (runs, retry) = (Arc::new(AtomicU32::new(0)), Retry { max_attempts: 3, ..Retry::default() });
    let counted = Arc::clone(&runs);
    let kills = QueueJob::new("kills", move |_, ()| {
        counted.fetch_add(1, Ordering::SeqCst);
        async {}
    });
    let World { clock, store, scheduler } = world(|builder| builder.with_queue_job(kills.retry(retry)));
    let id = scheduler.enqueue("kills", ()).await.expect("it is added");
    let killed = store.as_holder("killed");
    for failed_attempts in 0..3 {
        let jobs = killed.claim(&[("kills".to_owned(), 1)]).await.expect("the store is available");
        assert_eq!(jobs[0].failed_attempts, failed_attempts);
        clock.advance(killed.claim_ttl());
    }
    run_due(&scheduler).await;
    let [dead] = &*store.runs() else { panic!("one run is recorded: {:?}", store.runs()) };
    assert_eq!((dead.status, dead.attempt, dead.request_id), (RunStatus::Dead, 3, id));
    assert_eq!(
        dead.error.as_deref(),
        Some("attempt 3 of 3 left no result: its process ended, or lost the claim, during the run")
    );
    assert_eq!(runs.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn concurrency_of_a_kind_is_limited() {
    let (now, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (counted, highest) = (Arc::clone(&now), Arc::clone(&most));
    // They end one after the other, so the worker claims while others run.
    let slow = QueueJob::new("slow", move |_, seconds: u64| {
        let (now, most) = (Arc::clone(&counted), Arc::clone(&highest));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            now.fetch_sub(1, Ordering::SeqCst);
        }
    });
    let World { store, scheduler, .. } = world(|builder| builder.with_queue_job(slow.concurrency(3)));
    let jobs: Vec<_> = (0..20).map(|n| NewQueuedJob::new("slow", serde_json::json!(1 + n % 7))).collect();
    scheduler.enqueue_all(&jobs).await.expect("they are added");
    run_due(&scheduler).await;
    assert_eq!((store.runs().len(), most.load(Ordering::SeqCst)), (20, 3));
}

/// A kind whose run waits until the test lets it proceed, or until it is requested to stop.
fn waits(started: &mpsc::UnboundedSender<()>, proceed: &Arc<Notify>) -> QueueJob {
    let (started, proceed) = (started.clone(), Arc::clone(proceed));
    QueueJob::new("waits", move |ctx: JobContext, ()| {
        let (started, proceed) = (started.clone(), Arc::clone(&proceed));
        async move {
            started.send(()).expect("the test waits for it");
            tokio::select! {
                () = proceed.notified() => Ok::<_, JobError>(Outcome::done(1)),
                reason = ctx.stopped() => {
                    assert_ne!(reason, StopReason::Timeout);
                    Ok(Outcome::Interrupted { items: 7 })
                }
            }
        }
    })
}

/// The worker ends its runs in order, and a run that was interrupted is due again.
#[tokio::test]
async fn interrupted_job_is_claimed_again() {
    let (sender, mut started) = mpsc::unbounded_channel();
    let store = MemoryStore::new(Arc::new(SystemClock));
    let builder = Scheduler::builder().store(store.clone());
    let scheduler =
        builder.with_queue_job(waits(&sender, &Arc::default())).start().expect("no job is invalid");
    scheduler.enqueue("waits", ()).await.expect("it is added");
    started.recv().await.expect("the job starts");
    assert_eq!(scheduler.shutdown(Duration::ZERO).await.abandoned, 0);
    let runs = store.runs();
    assert_eq!((runs[0].status, runs[0].items), (RunStatus::Interrupted, 7));
    let again = store.claim(&[("waits".to_owned(), 1)]).await.expect("the store is available");
    assert_eq!((again.len(), again[0].failed_attempts), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn run_that_never_stops_is_abandoned() {
    let (sender, mut started) = mpsc::unbounded_channel();
    let builder = Scheduler::builder().queue_job("hangs", move |_, ()| {
        sender.send(()).expect("the test waits for it");
        std::future::pending::<()>()
    });
    let scheduler = builder.start().expect("no job is invalid");
    scheduler.enqueue("hangs", ()).await.expect("it is added");
    started.recv().await.expect("the job starts");
    assert_eq!(scheduler.shutdown(Duration::ZERO).await.abandoned, 1);
}

/// The worker does not wait for its next poll: time does not pass here.
#[tokio::test]
async fn added_job_wakes_idle_worker() {
    let (sender, mut ran) = mpsc::unbounded_channel();
    let builder = Scheduler::builder().clock(ManualClock::at(DateTime::UNIX_EPOCH));
    let builder = builder.queue_job("send", move |_, n: u32| {
        let sender = sender.clone();
        async move { sender.send(n).map_err(JobError::retry) }
    });
    let scheduler = builder.start().expect("no job is invalid");
    for n in 0..3 {
        scheduler.enqueue("send", n).await.expect("it is added");
        let started = tokio::time::timeout(Duration::from_mins(1), ran.recv()).await;
        assert_eq!(started.expect("the worker is woken"), Some(n));
    }
    scheduler.run_until(async {}).await;
}

/// The worker does not wait for its next poll: less than a second passes here.
#[tokio::test]
async fn delayed_job_starts_at_its_instant() {
    let (sender, mut ran) = mpsc::unbounded_channel();
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    let builder = Scheduler::builder().clock(clock.clone()).queue_job("send", move |_, n: u32| {
        let sender = sender.clone();
        async move { sender.send(n).map_err(JobError::retry) }
    });
    let scheduler = builder.start().expect("no job is invalid");
    scheduler.enqueue("send", 3).after(Duration::from_millis(300)).await.expect("it is added");
    for n in 0..4 {
        if n < 3 {
            // After these runs, no claim follows from the calls that add jobs.
            scheduler.enqueue("send", n).await.expect("it is added");
        } else {
            clock.advance(Duration::from_millis(300));
        }
        let started = tokio::time::timeout(Duration::from_mins(1), ran.recv()).await;
        assert_eq!(started.expect("the worker is woken"), Some(n));
    }
    scheduler.run_until(async {}).await;
}

/// Starts the job `waits` on a scheduler in virtual time; returns the task that ends with its run.
async fn running(scheduler: &Scheduler, started: &mut mpsc::UnboundedReceiver<()>) -> oneshot::Receiver<()> {
    scheduler.enqueue("waits", ()).await.expect("it is added");
    let (sender, ended) = oneshot::channel();
    let clone = scheduler.clone();
    tokio::spawn(async move {
        run_due(&clone).await;
        drop(sender);
    });
    started.recv().await.expect("the job starts");
    ended
}

#[tokio::test]
async fn renewed_claim_outlives_its_first_end() {
    let (sender, mut started) = mpsc::unbounded_channel();
    let proceed = Arc::new(Notify::new());
    let World { clock, store, scheduler } = world(|builder| builder.with_queue_job(waits(&sender, &proceed)));
    let ended = running(&scheduler, &mut started).await;
    let (ttl, other) = (store.claim_ttl(), store.as_holder("other"));
    for _ in 0..3 {
        clock.advance(ttl / 4 * 3);
        assert_eq!(scheduler.renew_leases().await, Some(ttl));
        let claimed = other.claim(&[("waits".to_owned(), 1)]).await.expect("the store is available");
        assert!(claimed.is_empty(), "the claim was renewed");
    }
    proceed.notify_one();
    ended.await.expect_err("the run ends");
    assert_eq!(store.runs().iter().map(|run| run.status).collect::<Vec<_>>(), [RunStatus::Done]);
    assert_eq!(scheduler.renew_leases().await, None, "nothing is left to renew");
}

#[tokio::test]
async fn lost_claim_stops_run_and_is_reported() {
    let (sender, mut started) = mpsc::unbounded_channel();
    let kind = waits(&sender, &Arc::default());
    let World { clock, store, scheduler } = world(|builder| builder.with_queue_job(kind));
    let mut events = scheduler.events();
    let ended = running(&scheduler, &mut started).await;
    clock.advance(store.claim_ttl());
    let claimed = store.as_holder("other").claim(&[("waits".to_owned(), 1)]).await;
    assert_eq!(claimed.expect("the store is available").len(), 1, "the claim has expired");
    scheduler.renew_leases().await;
    ended.await.expect_err("the run stops");
    assert!(store.runs().is_empty(), "the result of a lost claim is not recorded");
    assert!(matches!(events.next().await, Some(Event::Started { attempt: 1, .. })));
    let lost = tokio::time::timeout(Duration::ZERO, events.next()).await.expect("it is reported");
    assert!(
        matches!(&lost, Some(Event::LeaseLost { job, fencing_token }) if job == "waits" && fencing_token.0 == 1),
        "{lost:?}"
    );
    drop(scheduler);
    assert_eq!(events.next().await, None, "it is reported once");
}

/// A middleware that notes what it wraps.
struct Notes(mpsc::UnboundedSender<String>);

#[async_trait]
impl Middleware for Notes {
    async fn run(&self, ctx: &JobContext, next: Next<'_>) -> Result<Outcome, JobError> {
        self.0.send(format!("before {}", ctx.occurrence.job)).expect("the test waits");
        next.run(ctx).await
    }

    fn on_outcome(&self, spec: &JobSpec, run: &RunRecord) {
        let next =
            spec.schedule.next_after(DateTime::UNIX_EPOCH - TimeDelta::seconds(1)).expect("it is valid");
        assert_eq!(next, Some(run.scheduled_at), "a queued job is due once");
        self.0.send(format!("{} is {}", spec.name, run.status.as_str())).expect("the test waits");
    }
}

#[tokio::test]
async fn middleware_and_events_cover_queued_jobs() {
    let (sender, mut notes) = mpsc::unbounded_channel();
    let World { scheduler, .. } = world(|builder| {
        builder.layer(Notes(sender)).queue_job("mail", |_, fails: bool| async move {
            if fails { Err(JobError::fatal("no address")) } else { Ok(()) }
        })
    });
    let mut events = scheduler.events();
    for (fails, status) in [(false, "done"), (true, "dead")] {
        scheduler.enqueue("mail", fails).await.expect("it is added");
        run_due(&scheduler).await;
        assert_eq!(notes.recv().await.as_deref(), Some("before mail"));
        assert_eq!(notes.recv().await, Some(format!("mail is {status}")));
        let Some(Event::Started { occurrence, run_id, .. }) = events.next().await else {
            panic!("the run starts")
        };
        assert_eq!(occurrence.job, "mail");
        match events.next().await {
            Some(Event::Finished(run)) if !fails => {
                assert_eq!((run.id, run.cause), (run_id, RunCause::Queue));
            }
            Some(Event::Failed(run)) if fails => assert_eq!(run.error.as_deref(), Some("no address")),
            event => panic!("{event:?}"),
        }
    }
}

#[tokio::test]
async fn setup_and_enqueue_report_mistakes() {
    let without = |builder: SchedulerBuilder| {
        let store = MemoryStore::new(Arc::new(SystemClock));
        builder.store(Intercepted { store, around: () })
    };
    let error = without(Scheduler::builder()).queue_job("mail", |_, ()| async {}).build().err();
    assert!(matches!(&error, Some(SetupError::NoQueue { kind }) if kind == "mail"), "{error:?}");
    let scheduler = without(Scheduler::builder()).build().expect("no job is invalid");
    assert!(matches!(scheduler.enqueue("mail", ()).await, Err(EnqueueError::NoQueue)));
    let twice = Scheduler::builder().queue_job("mail", |_, ()| async {}).queue_job("mail", |_, ()| async {});
    let error = twice.build().err();
    assert!(matches!(&error, Some(SetupError::Duplicate { job }) if job == "mail"), "{error:?}");
    let scheduler = Scheduler::builder().build().expect("no job is invalid");
    let error = scheduler.enqueue("mail", BTreeMap::from([((1, 2), 3)])).await.expect_err("not JSON");
    assert_eq!(error.to_string(), "cannot encode the payload of a job of kind `mail`: key must be a string");
}

/// A scheduled job adds a delayed one; a month passes in virtual time.
#[tokio::test]
async fn virtual_month_includes_delayed_jobs() {
    let start: DateTime<Utc> = "2026-03-01T00:00:00Z".parse().expect("a time");
    let (sender, mut requests) = mpsc::unbounded_channel();
    let builder = Scheduler::builder()
        .job("close-day", every("1d"), move |ctx| {
            sender.send(ctx.occurrence.scheduled_at).expect("the test waits");
            async {}
        })
        .queue_job("reminder", |_, _: DateTime<Utc>| async {});
    let test = TestScheduler::new(start, builder).expect("no job is invalid");
    for _ in 0..30 {
        test.advance(DAY).await;
        while let Ok(day) = requests.try_recv() {
            test.enqueue("reminder", day).after(Duration::from_mins(90)).await.expect("it is added");
        }
    }
    test.assert_ran("close-day", 30);
    test.assert_ran("reminder", 29);
    assert_eq!(test.runs("reminder")[0].scheduled_at, start + TimeDelta::minutes(24 * 60 + 90));
}
