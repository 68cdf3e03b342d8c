//! The worker of the queue: what it runs, in which order, and what it records.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use billing_scheduler::{
    BoxError, JobContext, JobError, ManualClock, MemoryStore, Outcome, Queue, QueueJob, QueueStore, Retry,
    RunCause, RunStatus, chrono::DateTime,
};
use tokio::sync::{Notify, oneshot};

const DAY: Duration = Duration::from_hours(24);

async fn panics(_: JobContext, (): ()) {
    panic!("a bug")
}

fn queue() -> (ManualClock, MemoryStore, Queue) {
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    let store = MemoryStore::new(Arc::new(clock.clone()));
    let queue = Queue::new(Arc::new(store.clone()), Arc::new(clock.clone()));
    (clock, store, queue)
}

#[tokio::test]
async fn jobs_run_with_their_payloads() {
    let (_, store, queue) = queue();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let queue = queue.job(
        QueueJob::new("mail", move |ctx: JobContext, (to, copies): (String, u32)| {
            let sink = Arc::clone(&sink);
            async move {
                sink.lock().expect("no run panics").push(format!("{to} x{copies}, {}", ctx.attempt));
                Outcome::done(u64::from(copies))
            }
        })
        .concurrency(1),
    );
    let low = queue.enqueue("mail", ("low", 1)).expect("it is JSON").await.expect("it is added");
    queue.enqueue("mail", ("high", 2)).expect("it is JSON").priority(1).await.expect("it is added");
    queue.enqueue("other", ()).expect("it is JSON").await.expect("it is added");
    assert_eq!(queue.run_due().await.expect("the store is available"), 2);
    assert_eq!(*seen.lock().expect("no run panics"), ["high x2, 1", "low x1, 1"]);
    let runs = store.runs();
    assert_eq!(runs.iter().map(|run| run.items).collect::<Vec<_>>(), [2, 1]);
    assert_eq!((runs[1].cause, runs[1].request_id), (RunCause::Queue, low));
}

#[tokio::test]
async fn failed_job_is_retried_until_dead() {
    let (clock, store, queue) = queue();
    let retry = Retry { max_attempts: 3, ..Retry::default() };
    let queue = queue
        .job(
            QueueJob::new("fails", |_, ()| async { Err::<(), BoxError>("out of paper".into()) }).retry(retry),
        )
        .job(QueueJob::new("panics", panics).retry(retry))
        .job(QueueJob::new("typed", |_, _: u32| async {}));
    for kind in ["fails", "panics"] {
        queue.enqueue(kind, ()).expect("it is JSON").await.expect("it is added");
    }
    queue.enqueue("typed", "not a number").expect("it is JSON").await.expect("it is added");
    assert_eq!(queue.run_due().await.expect("the store is available"), 3);
    assert_eq!(queue.run_due().await.expect("the store is available"), 0, "retries wait");
    for _ in 0..10 {
        clock.advance(Duration::from_mins(5));
        queue.run_due().await.expect("the store is available");
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
async fn delayed_and_unique_jobs_wait() {
    let (clock, store, queue) = queue();
    let queue = queue.job(QueueJob::new("report", |_, ()| async {}));
    let add = |key: &'static str| queue.enqueue("report", ()).expect("it is JSON").unique_by(key).after(DAY);
    assert!(add("monthly").await.expect("it is added").is_some());
    assert!(add("monthly").await.expect("the store is available").is_none());
    clock.advance(Duration::from_secs(86_399));
    assert_eq!(queue.run_due().await.expect("the store is available"), 0);
    clock.advance(Duration::from_secs(1));
    assert_eq!(queue.run_due().await.expect("the store is available"), 1);
    assert!(add("monthly").await.expect("it is added").is_some());
    assert_eq!(store.runs()[0].scheduled_at, DateTime::UNIX_EPOCH + DAY);
}

#[tokio::test(start_paused = true)]
async fn concurrency_of_a_kind_is_limited() {
    let (_, store, queue) = queue();
    let (now, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (counted, highest) = (Arc::clone(&now), Arc::clone(&most));
    let queue = queue.job(
        QueueJob::new("slow", move |_, ()| {
            let (now, most) = (Arc::clone(&counted), Arc::clone(&highest));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                now.fetch_sub(1, Ordering::SeqCst);
            }
        })
        .concurrency(3),
    );
    for _ in 0..20 {
        queue.enqueue("slow", ()).expect("it is JSON").await.expect("it is added");
    }
    queue.run_due().await.expect("the store is available");
    assert_eq!((store.runs().len(), most.load(Ordering::SeqCst)), (20, 3));
}

/// The worker ends its runs in order, and a run that was interrupted is due again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_job_is_claimed_again() {
    let (_, store, queue) = queue();
    let started = Arc::new(Notify::new());
    let signal = Arc::clone(&started);
    let queue = queue.job(QueueJob::new("long", move |ctx: JobContext, ()| {
        let signal = Arc::clone(&signal);
        async move {
            signal.notify_one();
            ctx.stopped().await;
            Ok::<_, JobError>(Outcome::Interrupted { items: 7 })
        }
    }));
    queue.enqueue("long", ()).expect("it is JSON").await.expect("it is added");
    let (end, ended) = oneshot::channel::<()>();
    let stop = async {
        started.notified().await;
        end.send(()).expect("the worker waits for it");
    };
    tokio::join!(queue.run_until(ended, Duration::ZERO), stop);
    let runs = store.runs();
    assert_eq!((runs[0].status, runs[0].items), (RunStatus::Interrupted, 7));
    let again = store.claim(&[("long".to_owned(), 1)]).await.expect("the store is available");
    assert_eq!((again.len(), again[0].failed_attempts), (1, 0));
}
