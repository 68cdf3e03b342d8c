//! Signs of jobs, heard by a server on this machine.

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

/// How long a run may take. Only a failure takes that long.
const PATIENCE: Duration = Duration::from_secs(20);

type Heard = Arc<Mutex<Vec<String>>>;

/// Fails as often as its parameter says.
struct Fails(Mutex<u32>);

#[async_trait]
impl Job for Fails {
    async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
        let mut left = self.0.lock().expect("nobody panics in there");
        match left.checked_sub(1) {
            Some(less) => {
                *left = less;
                Err(JobError::retry("not yet"))
            }
            None => Ok(Outcome::done(1)),
        }
    }
}

async fn server() -> (Heard, String) {
    let heard = Heard::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it has one"));
    let note = |State(heard): State<Heard>, uri: Uri| async move {
        heard.lock().expect("nobody panics in there").push(uri.to_string());
    };
    let app = Router::new().fallback(note).with_state(Arc::clone(&heard));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (heard, url)
}

/// Runs the jobs `watched` and `other`, which fail so often, with two attempts, and waits for the last sign. Returns what is on
/// record of `watched`.
async fn run(failures: u32, ping: Value) -> Vec<RunStatus> {
    run_beside(None, failures, ping).await
}

/// The same while this takes connections and answers none, until the runs are over.
async fn run_beside(silent: Option<TcpListener>, failures: u32, ping: Value) -> Vec<RunStatus> {
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
        let idle = tokio::time::timeout(PATIENCE, scheduler.idle());
        idle.await.expect("no run waits for its signs");
    }
    drop(silent);
    // The last owner waits for what is still to be sent, on a thread that the server does not need.
    let ending = tokio::task::spawn_blocking(move || drop((scheduler, registry)));
    ending.await.expect("it ends");
    store.runs().iter().filter(|run| run.job == "watched").map(|run| run.status).collect()
}

#[tokio::test]
async fn a_sign_is_given_of_each_start_of_success_and_of_what_is_given_up() {
    for (failures, expected) in [
        (0, ["/start", "/ok"].as_slice()),
        (1, &["/start", "/start", "/ok"]),
        (2, &["/start", "/start", "/fail"]),
    ] {
        let (heard, url) = server().await;
        let all = json!({ "url": format!("{url}/ok"), "start": format!("{url}/start"), "fail": format!("{url}/fail") });
        run(failures, all).await;
        assert_eq!(*heard.lock().expect("nobody panics in there"), expected, "{failures} failures");
    }
}

#[tokio::test]
async fn without_more_urls_only_success_is_told() {
    for (failures, expected) in [(1, ["/ok"].as_slice()), (2, &[])] {
        let (heard, url) = server().await;
        run(failures, json!({ "url": format!("{url}/ok") })).await;
        assert_eq!(*heard.lock().expect("nobody panics in there"), expected, "{failures} failures");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_neither_fails_nor_waits_if_nobody_hears_its_signs() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let closed = nobody.local_addr().expect("it has one");
    drop(nobody);
    let unset = json!({ "env": "NO_SUCH_VARIABLE" });
    for (failures, expected) in [
        (0, [RunStatus::Done].as_slice()),
        (1, &[RunStatus::Retrying, RunStatus::Done]),
        (2, &[RunStatus::Retrying, RunStatus::Dead]),
    ] {
        let ping = json!({ "url": format!("http://{closed}/"), "start": unset, "fail": unset });
        assert_eq!(run(failures, ping).await, expected, "{failures} failures, and nobody is there");
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}/", silent.local_addr().expect("it has one"));
        let ping = json!({ "url": url, "start": url, "fail": url, "timeout": "1m" });
        let found = run_beside(Some(silent), failures, ping).await;
        assert_eq!(found, expected, "{failures} failures, and nobody answers");
    }
}
