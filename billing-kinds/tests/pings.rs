//! Pings of jobs, received by a local server.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, extract::State, http::Uri};
use billing_kinds::{Ping, Pings};
use billing_scheduler::{
    Job, JobContext, JobError, JobSpec, ManualClock, MemoryStore, Outcome, Registry, RunStatus, Schedule,
    Scheduler,
    chrono::{DateTime, Utc},
    serde_json::{self, Value, json},
};
use tokio::net::TcpListener;

/// The time limit of a test; only a failure reaches it.
const TIMEOUT: Duration = Duration::from_secs(20);

type Received = Arc<Mutex<Vec<String>>>;

/// Fails for the given number of attempts.
struct Fails(Mutex<u32>);

#[async_trait]
impl Job for Fails {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        let mut left = self.0.lock().expect("no thread panics while it holds the lock");
        match left.checked_sub(1) {
            Some(less) => {
                *left = less;
                Err(JobError::retry("not yet"))
            }
            None => Ok(Outcome::done(1)),
        }
    }
}

async fn server() -> (Received, String) {
    let received = Received::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it has one"));
    let record = |State(received): State<Received>, uri: Uri| async move {
        received.lock().expect("no thread panics while it holds the lock").push(uri.to_string());
    };
    let app = Router::new().fallback(record).with_state(Arc::clone(&received));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (received, url)
}

/// Runs the jobs `watched` and `other`, which fail `failures` times and have two attempts, and waits for the last ping. Returns the
/// statuses in the history of `watched`.
async fn run(failures: u32, ping: Value) -> Vec<RunStatus> {
    run_with_silent_server(None, failures, ping).await
}

/// Like [`run`], with a server that accepts connections and never responds, until the runs are over.
async fn run_with_silent_server(silent: Option<TcpListener>, failures: u32, ping: Value) -> Vec<RunStatus> {
    let ping: Ping = serde_json::from_value(ping).expect("the parameters fit");
    let start: DateTime<Utc> = "2026-01-05T13:59:00Z".parse().expect("an instant");
    let clock = ManualClock::at(start);
    let store = MemoryStore::new(Arc::new(clock.clone()));
    let mut registry = Registry::new();
    registry.register("fails", |failures: u32| Fails(Mutex::new(failures)));
    registry.layer(Pings::new([("watched".to_owned(), ping)]).expect("there is a thread"));
    let hourly = || Schedule::every(Duration::from_hours(1)).expect("whole seconds");
    let jobs = ["watched", "other"].map(|name| {
        let mut spec = JobSpec::new(name, "fails", hourly());
        spec.retry.max_attempts = 2;
        (spec, json!(failures))
    });
    let scheduler = Scheduler::build(&registry, jobs, Arc::new(store.clone()), Arc::new(clock.clone()))
        .expect("known kinds");
    for seconds in [0, 60, 15, 15] {
        clock.advance(Duration::from_secs(seconds));
        scheduler.tick();
        let idle = tokio::time::timeout(TIMEOUT, scheduler.idle());
        idle.await.expect("no run waits for its pings");
    }
    drop(silent);
    // Dropping the last owner waits for the pings, so it must not block the server's thread.
    let ending = tokio::task::spawn_blocking(move || drop((scheduler, registry)));
    ending.await.expect("it ends");
    store.runs().iter().filter(|run| run.job == "watched").map(|run| run.status).collect()
}

#[tokio::test]
async fn pings_are_sent_for_configured_events() {
    for (failures, expected) in [
        (0, ["/start", "/ok"].as_slice()),
        (1, &["/start", "/start", "/ok"]),
        (2, &["/start", "/start", "/fail"]),
    ] {
        let (received, url) = server().await;
        let all = json!({ "url": format!("{url}/ok"), "start": format!("{url}/start"), "fail": format!("{url}/fail") });
        run(failures, all).await;
        assert_eq!(
            *received.lock().expect("no thread panics while it holds the lock"),
            expected,
            "{failures} failures"
        );
    }
}

#[tokio::test]
async fn success_alone_is_pinged_by_default() {
    for (failures, expected) in [(1, ["/ok"].as_slice()), (2, &[])] {
        let (received, url) = server().await;
        run(failures, json!({ "url": format!("{url}/ok") })).await;
        assert_eq!(
            *received.lock().expect("no thread panics while it holds the lock"),
            expected,
            "{failures} failures"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_server_affects_no_run() {
    let unused = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let closed = unused.local_addr().expect("it has one");
    drop(unused);
    let unset = json!({ "env": "NO_SUCH_VARIABLE" });
    for (failures, expected) in [
        (0, [RunStatus::Done].as_slice()),
        (1, &[RunStatus::Retrying, RunStatus::Done]),
        (2, &[RunStatus::Retrying, RunStatus::Dead]),
    ] {
        let ping = json!({ "url": format!("http://{closed}/"), "start": unset, "fail": unset });
        assert_eq!(run(failures, ping).await, expected, "{failures} failures, connection refused");
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}/", silent.local_addr().expect("it has one"));
        let ping = json!({ "url": url, "start": url, "fail": url, "timeout": "1m" });
        let found = run_with_silent_server(Some(silent), failures, ping).await;
        assert_eq!(found, expected, "{failures} failures, no response");
    }
}
