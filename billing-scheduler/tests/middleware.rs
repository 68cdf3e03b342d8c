//! Middleware observes every run and its result, and may change both.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    Job, JobContext, JobError, JobSpec, ManualClock, MemoryStore, Middleware, Next, Outcome, Registry,
    RunRecord, RunStatus, Schedule, Scheduler,
    chrono::{DateTime, Utc},
    serde_json::{Value, json},
};

type Notes = Arc<Mutex<Vec<String>>>;

fn at(clock: &str) -> DateTime<Utc> {
    format!("2026-01-05T{clock}Z").parse().expect("a time of day")
}

/// A job that fails, panics or succeeds, depending on its parameter.
struct Obedient {
    order: String,
    notes: Notes,
}

#[async_trait]
impl Job for Obedient {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        self.notes.lock().unwrap().push("the job".to_owned());
        match self.order.as_str() {
            "fail" => Err(JobError::retry("it failed")),
            "give up" => Err(JobError::fatal("it cannot work")),
            "panic" => panic!("it panicked"),
            _ => Ok(Outcome::done(1)),
        }
    }
}

struct Watcher {
    name: &'static str,
    notes: Notes,
}

#[async_trait]
impl Middleware for Watcher {
    async fn run(&self, ctx: &JobContext, next: Next<'_>) -> Result<Outcome, JobError> {
        self.notes.lock().unwrap().push(format!("{} before attempt {}", self.name, ctx.attempt));
        let result = next.run(ctx).await;
        let how = match &result {
            Ok(outcome) => format!("{outcome:?}"),
            Err(JobError::Retry(error)) => format!("retry: {error}"),
            Err(JobError::Unavailable(error)) => format!("unavailable: {error}"),
            Err(JobError::Fatal(error)) => format!("fatal: {error}"),
        };
        self.notes.lock().unwrap().push(format!("{} after {how}", self.name));
        result
    }

    fn on_outcome(&self, spec: &JobSpec, run: &RunRecord) {
        self.notes.lock().unwrap().push(format!("{}: {} is {}", self.name, spec.name, run.status.as_str()));
    }
}

struct Stranger(fn(&JobContext) -> Option<Result<Outcome, JobError>>);

#[async_trait]
impl Middleware for Stranger {
    async fn run(&self, ctx: &JobContext, next: Next<'_>) -> Result<Outcome, JobError> {
        match self.0(ctx) {
            Some(result) => result,
            None => next.run(ctx).await,
        }
    }
}

struct Loud;

#[async_trait]
impl Middleware for Loud {
    fn on_outcome(&self, _: &JobSpec, _: &RunRecord) {
        panic!("on_outcome")
    }
}

/// Runs one occurrence of a job; returns the notes of the middleware and the record.
async fn run(order: &str, layers: impl FnOnce(&mut Registry, &Notes)) -> (Vec<String>, RunRecord) {
    let clock = ManualClock::at(at("13:59:59"));
    let store = MemoryStore::new(Arc::new(clock.clone()));
    let notes = Notes::default();
    let mut registry = Registry::new();
    let given = Arc::clone(&notes);
    registry.register("obedient", move |order: String| Obedient { order, notes: Arc::clone(&given) });
    layers(&mut registry, &notes);
    let spec = JobSpec::new("job", "obedient", Schedule::every(Duration::from_hours(1)).expect("valid"));
    let jobs = [(spec, Value::from(order))];
    let scheduler = Scheduler::build(&registry, jobs, Arc::new(store.clone()), Arc::new(clock.clone()));
    let scheduler = scheduler.expect("known kind");
    scheduler.tick();
    scheduler.idle().await;
    clock.advance(Duration::from_secs(1));
    scheduler.tick();
    scheduler.idle().await;
    let notes = notes.lock().unwrap().clone();
    (notes, store.runs().into_iter().next().expect("one run"))
}

#[tokio::test]
async fn first_middleware_is_outermost() {
    let (notes, _) = run("work", |registry, notes| {
        registry.layer(Watcher { name: "outer", notes: Arc::clone(notes) });
        registry.layer(Watcher { name: "inner", notes: Arc::clone(notes) });
    })
    .await;
    assert_eq!(
        notes,
        [
            "outer before attempt 1",
            "inner before attempt 1",
            "the job",
            "inner after Done { items: 1, details: Null }",
            "outer after Done { items: 1, details: Null }",
            "outer: job is done",
            "inner: job is done",
        ]
    );
}

#[tokio::test]
async fn middleware_receives_failure_after_panic() {
    for (order, after, on_outcome) in [
        ("fail", "w after retry: it failed", "w: job is retrying"),
        ("give up", "w after fatal: it cannot work", "w: job is dead"),
        ("panic", "w after retry: the job panicked: it panicked", "w: job is retrying"),
    ] {
        let (notes, _) =
            run(order, |registry, notes| registry.layer(Watcher { name: "w", notes: Arc::clone(notes) }))
                .await;
        assert_eq!(notes, ["w before attempt 1", "the job", after, on_outcome]);
    }
}

#[tokio::test]
async fn middleware_may_replace_result() {
    let (notes, record) = run("work", |registry, _| {
        registry.layer(Stranger(|ctx| {
            ctx.report(json!({ "on": "a Friday" }));
            Some(Err(JobError::fatal("not today")))
        }));
    })
    .await;
    assert!(notes.is_empty(), "the job was not called: {notes:?}");
    assert_eq!((record.status, record.error.as_deref()), (RunStatus::Dead, Some("not today")));
    assert_eq!(record.details, json!({ "on": "a Friday" }));
}

#[tokio::test]
async fn panicking_middleware_fails_one_run() {
    let (_, record) = run("work", |registry, _| registry.layer(Stranger(|_| panic!("a bug")))).await;
    assert_eq!(
        (record.status, record.error.as_deref()),
        (RunStatus::Retrying, Some("a middleware panicked: a bug"))
    );
    let (notes, record) = run("work", |registry, notes| {
        registry.layer(Loud);
        registry.layer(Watcher { name: "w", notes: Arc::clone(notes) });
    })
    .await;
    assert_eq!(record.status, RunStatus::Done);
    assert_eq!(notes.last().map(String::as_str), Some("w: job is done"), "the other middleware is notified");
}

#[tokio::test]
async fn middleware_is_testable_alone() {
    let notes = Notes::default();
    let job = Obedient { order: "work".to_owned(), notes: Arc::clone(&notes) };
    let ctx = JobContext::for_test("job", at("14:00:00"));
    let watcher = Watcher { name: "w", notes: Arc::clone(&notes) };
    let outcome = watcher.run(&ctx, Next::to(&job)).await.expect("it works");
    assert_eq!(outcome, Outcome::done(1));
    assert_eq!(notes.lock().unwrap().len(), 3);
}
