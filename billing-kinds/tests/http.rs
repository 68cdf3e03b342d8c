//! The kind `http`, against a server on this machine.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use billing_scheduler::{
    Job, JobContext, JobError, Outcome, Registry, StopReason,
    chrono::{DateTime, Utc},
    serde_json::{Value, json},
};
use tokio::net::TcpListener;

/// One request as the server saw it: the line, the headers in their order, the body.
#[derive(Clone, Debug)]
struct Seen {
    line: String,
    headers: Vec<(String, String)>,
    body: String,
}

#[derive(Clone, Default)]
struct Server {
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Answers `/503` with that status, and so on; `/redirect` elsewhere, `/slow` never.
    async fn start() -> (Self, String) {
        let server = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it has one"));
        let app = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (server, url)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("nobody panics in there").clone()
    }
}

async fn answer(State(server): State<Server>, request: Request) -> Response {
    let line = format!("{} {}", request.method(), request.uri());
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("?").to_owned()));
    let headers = headers.collect();
    let path = request.uri().path().to_owned();
    let body = axum::body::to_bytes(request.into_body(), 10_000).await.unwrap_or_default();
    let body = String::from_utf8_lossy(&body).into_owned();
    server.seen.lock().expect("nobody panics in there").push(Seen { line, headers, body });
    match path.trim_start_matches('/') {
        "redirect" => Redirect::to("/elsewhere").into_response(),
        "slow" => std::future::pending().await,
        "long" => "x".repeat(10_000_000).into_response(),
        status => {
            let status = status.parse().ok().and_then(|status| StatusCode::from_u16(status).ok());
            (status.unwrap_or(StatusCode::OK), "an answer").into_response()
        }
    }
}

fn job(params: Value) -> Arc<dyn Job> {
    let mut registry = Registry::new();
    billing_kinds::register(&mut registry);
    registry.build("http", params).expect("the parameters fit")
}

fn context() -> JobContext {
    let scheduled_at: DateTime<Utc> = "2026-01-05T14:00:00Z".parse().expect("an instant");
    JobContext::for_test("report", scheduled_at)
}

#[tokio::test]
async fn a_request_is_made_as_the_parameters_say() {
    let (server, url) = Server::start().await;
    let secret = tempfile::NamedTempFile::new().expect("a file is made");
    std::fs::write(secret.path(), "Bearer s3cret\n").expect("it is written");
    let job = job(json!({
        "url": format!("{url}/report?of=billing"),
        "method": "POST",
        "headers": { "Authorization": { "file": secret.path() }, "Content-Type": "text/plain" },
        "body": "all is well",
    }));
    let outcome = job.run(&context()).await.expect("it works");
    assert_eq!(outcome, Outcome::Done { items: 1, details: json!({ "status": 200, "bytes": 9 }) });
    let [seen] = server.seen().try_into().expect("one request");
    assert_eq!((seen.line.as_str(), seen.body.as_str()), ("POST /report?of=billing", "all is well"));
    for header in [
        ("authorization", "Bearer s3cret"),
        ("content-type", "text/plain"),
        ("idempotency-key", "\"report@1767621600\""),
    ] {
        let (name, value) = (header.0.to_owned(), header.1.to_owned());
        assert!(seen.headers.contains(&(name, value)), "{header:?} in {:?}", seen.headers);
    }
}

#[tokio::test]
async fn a_status_says_whether_it_worked_and_whether_to_try_again() {
    let (server, url) = Server::start().await;
    for (path, expected, outcome) in [
        ("200", json!([]), "done"),
        ("204", json!([]), "done"),
        ("204", json!([200]), "fatal"),
        ("404", json!([404]), "done"),
        ("404", json!([]), "fatal"),
        ("401", json!([]), "fatal"),
        ("408", json!([]), "retry"),
        ("429", json!([]), "retry"),
        ("500", json!([]), "retry"),
        ("503", json!([]), "retry"),
        ("redirect", json!([]), "fatal"),
        ("redirect", json!([303]), "done"),
    ] {
        let job = job(json!({ "url": format!("{url}/{path}"), "expect-status": expected }));
        let result = match job.run(&context()).await {
            Ok(_) => "done",
            Err(JobError::Retry(_)) => "retry",
            Err(JobError::Fatal(_)) => "fatal",
        };
        assert_eq!(result, outcome, "{path} {expected}");
    }
    assert!(server.seen().iter().all(|seen| !seen.line.contains("elsewhere")), "no redirect is followed");
}

#[tokio::test]
async fn an_answer_of_any_length_is_read_up_to_a_limit() {
    let (_, url) = Server::start().await;
    let ctx = context();
    job(json!({ "url": format!("{url}/long") })).run(&ctx).await.expect("it works");
    assert_eq!(ctx.reported()["bytes"], 16 * 1024);
}

#[tokio::test]
async fn a_server_that_never_answers_is_left_after_the_timeout_or_when_the_run_is_to_stop() {
    let (server, url) = Server::start().await;
    let slow = job(json!({ "url": format!("{url}/slow"), "timeout": "50ms" }));
    let error = slow.run(&context()).await.expect_err("no answer");
    assert!(matches!(error, JobError::Retry(_)), "{error}");
    let patient = job(json!({ "url": format!("{url}/slow"), "timeout": "5s" }));
    let ctx = context();
    let stop = async {
        while server.seen().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ctx.stop_handle().stop(StopReason::Drain);
    };
    let (result, ()) = tokio::join!(patient.run(&ctx), stop);
    assert_eq!(result.expect("no failure"), Outcome::Interrupted { items: 0 });
}

#[tokio::test]
async fn no_secret_of_a_request_is_told() {
    let (_, url) = Server::start().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let closed = nobody.local_addr().expect("it has one");
    drop(nobody);
    let token = json!({ "X-Token": "s3cret" });
    for (params, expected) in [
        (
            json!({ "url": format!("{url}/404?token=s3cret"), "headers": token }),
            format!("{url} answered with status 404: an answer"),
        ),
        (
            json!({ "url": format!("http://user:s3cret@{closed}/s3cret") }),
            format!("no answer from http://{closed}: "),
        ),
        // Spoken to in plain text: it has no certificate to show.
        (
            json!({ "url": url.replace("http:", "https:") + "/s3cret" }),
            "no answer from https://127.0.0.1:".to_owned(),
        ),
        (json!({ "url": "s3cret s3cret" }), "the URL is malformed: ".to_owned()),
        (json!({ "url": "ftp://host/s3cret" }), String::new()),
        (
            json!({ "url": url, "headers": { "X": "s3cret\n" } }),
            format!("the request to {url} is malformed: "),
        ),
        (
            json!({ "url": { "env": "NO_SUCH_VARIABLE" } }),
            "the environment has no variable `NO_SUCH_VARIABLE`".to_owned(),
        ),
    ] {
        let error = job(params.clone()).run(&context()).await.expect_err("it cannot work").to_string();
        assert!(error.starts_with(&expected) && !error.contains("s3cret"), "{params}: {error}");
        let parsed: billing_kinds::HttpParams =
            billing_scheduler::serde_json::from_value(params).expect("the parameters fit");
        assert!(!format!("{parsed:?}").contains("s3cret"), "{parsed:?}");
    }
}

#[test]
fn wrong_parameters_are_told_with_their_place() {
    let mut registry = Registry::new();
    billing_kinds::register(&mut registry);
    for (params, expected) in [
        (json!({}), "parameters of kind `http`: missing field `url`"),
        (
            json!({ "url": "http://a", "method": "get" }),
            "parameters of kind `http` at `method`: unknown variant `get`, expected one of `GET`, `HEAD`, `POST`, `PUT`, `PATCH`, `DELETE`",
        ),
        (
            json!({ "url": { "environment": "A" } }),
            "parameters of kind `http` at `url.environment`: invalid type: map, expected text, { env = \"NAME\" } or { file = \"/path\" }",
        ),
        (
            json!({ "url": "http://a", "timeout": "0s" }),
            "parameters of kind `http` at `timeout`: `0s` is no time at all: write how long, for example `5m`",
        ),
    ] {
        let error = registry.check("http", params).expect_err("refused").to_string();
        assert_eq!(error, expected);
    }
}
