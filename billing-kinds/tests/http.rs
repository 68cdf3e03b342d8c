//! The kind `http`, with a local server.

use std::{
    io::{Read as _, Write as _},
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
    Job, JobContext, JobError, Outcome, Registry, Severity, StopReason,
    chrono::{DateTime, Utc},
    serde_json::{Value, json},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, ServerConnection, pki_types::PrivateKeyDer};
use tokio::net::TcpListener;

/// One request that the server received.
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
    /// Responds to `/503` with that status, and so on; to `/redirect` with a redirect, to `/slow` never.
    async fn start() -> (Self, String) {
        let server = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it has one"));
        let app = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (server, url)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no thread panics while it holds the lock").clone()
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
    server.seen.lock().expect("no thread panics while it holds the lock").push(Seen { line, headers, body });
    match path.trim_start_matches('/') {
        "redirect" => Redirect::to("/elsewhere").into_response(),
        "slow" => std::future::pending().await,
        "long" => "x".repeat(10_000_000).into_response(),
        "echo" => {
            let seen = server.seen().pop().expect("this request");
            (StatusCode::BAD_REQUEST, format!("{} {} {:?}", seen.line, seen.body, seen.headers))
                .into_response()
        }
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
async fn request_has_configured_parts() {
    let (server, url) = Server::start().await;
    let secret = tempfile::NamedTempFile::new().expect("a file is made");
    std::fs::write(secret.path(), "Bearer s3cret\n").expect("it is written");
    let job = job(json!({
        "url": format!("{url}/report?of=billing"),
        "method": "POST",
        "headers": { "Authorization": { "file": secret.path() }, "Content-Type": "text/plain" },
        "body": "no problems",
    }));
    let outcome = job.run(&context()).await.expect("it works");
    assert_eq!(outcome, Outcome::Done { items: 1, details: json!({ "status": 200, "bytes": 9 }) });
    let [seen] = server.seen().try_into().expect("one request");
    assert_eq!((seen.line.as_str(), seen.body.as_str()), ("POST /report?of=billing", "no problems"));
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
async fn configured_headers_replace_defaults_in_any_case() {
    let (server, url) = Server::start().await;
    for (headers, expected) in [
        (
            json!({ "IDEMPOTENCY-key": "mine" }),
            ["mine", concat!("billing-daemon/", env!("CARGO_PKG_VERSION"))],
        ),
        (json!({ "user-AGENT": "me" }), ["\"report@1767621600\"", "me"]),
    ] {
        let job = job(json!({ "url": url, "method": "PUT", "headers": headers }));
        job.run(&context()).await.expect("it works");
        let seen = server.seen().pop().expect("a request");
        let sent = |name: &str| -> Vec<String> {
            let sent = seen.headers.iter().filter(|(sent, _)| sent == name);
            sent.map(|(_, value)| value.clone()).collect()
        };
        assert_eq!([sent("idempotency-key"), sent("user-agent")].concat(), expected, "{headers}");
    }
}

#[tokio::test]
async fn status_decides_result_and_retry() {
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
            Err(JobError::Unavailable(_)) => "unavailable",
            Err(JobError::Fatal(_)) => "fatal",
        };
        assert_eq!(result, outcome, "{path} {expected}");
    }
    assert!(server.seen().iter().all(|seen| !seen.line.contains("elsewhere")), "no redirect is followed");
}

#[tokio::test]
async fn long_responses_are_read_completely() {
    let (_, url) = Server::start().await;
    let ctx = context();
    job(json!({ "url": format!("{url}/long") })).run(&ctx).await.expect("it works");
    assert_eq!(ctx.reported()["bytes"], 10_000_000);
}

/// Responds to every connection with this text, then closes it if `closes`.
fn raw_server(text: &'static str, closes: bool) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it has one"));
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            // A test may not send a request or not read the response.
            let _ = stream.read(&mut request);
            let _ = stream.write_all(text.as_bytes());
            if !closes {
                open.push(stream);
            }
        }
    });
    url
}

#[tokio::test]
async fn incomplete_responses_are_failures() {
    for (answer, closes, expected) in [
        ("200 OK\r\nContent-Length: 3\r\n\r\nabc", false, Ok(3)),
        (
            "200 OK\r\nContent-Length: 9\r\n\r\nabc",
            false,
            Err("retry: the response of SERVER is incomplete after 3 bytes: "),
        ),
        (
            "200 OK\r\nContent-Length: 9\r\n\r\nabc",
            true,
            Err("retry: the response of SERVER is incomplete after 3 bytes: "),
        ),
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", false, Ok(3)),
        (
            "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            false,
            Err("retry: the response of SERVER is incomplete "),
        ),
        (
            "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            true,
            Err("retry: the response of SERVER is incomplete "),
        ),
        // Without a length, the end of the connection is the end of the response.
        ("200 OK\r\n\r\nabc", true, Ok(3)),
        ("200 OK\r\n\r\nabc", false, Err("retry: the response of SERVER is incomplete after 3 bytes: ")),
        // An unexpected status is more useful than an incomplete response.
        (
            "404 Not Found\r\nContent-Length: 9\r\n\r\nabc",
            true,
            Err("fatal: SERVER returned status 404: abc"),
        ),
        ("200 OK\r\nContent-Le", true, Err("retry: no response from SERVER: ")),
    ] {
        let url = raw_server(format!("HTTP/1.1 {answer}").leak(), closes);
        let ctx = context();
        let result = job(json!({ "url": url, "timeout": "300ms" })).run(&ctx).await;
        let found = match result {
            Ok(_) => Ok(ctx.reported()["bytes"].as_u64().expect("a number")),
            Err(error @ JobError::Retry(_)) => Err(format!("retry: {error}")),
            Err(error) => Err(format!("fatal: {error}")),
        };
        match (&found, expected.map_err(|expected| expected.replace("SERVER", &url))) {
            (Err(found), Err(expected)) => assert!(found.starts_with(&expected), "{answer:?}: {found}"),
            (found, expected) => assert_eq!(*found, expected, "{answer:?}"),
        }
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
}

/// Responds with 204, and has a certificate for this host by `authority`.
fn tls_server(authority: &CertifiedIssuer<'static, KeyPair>) -> String {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a certificate and its key");
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("https://{}", listener.local_addr().expect("it has one"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
            let mut tls = rustls::Stream::new(&mut connection, &mut stream);
            let mut request = [0; 1024];
            // A client that does not trust the certificate sends an alert instead.
            if tls.read(&mut request).is_ok() {
                let _ = tls.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
            }
        }
    });
    url
}

#[tokio::test]
async fn ca_files_replace_public_authorities() {
    let (ours, another) = (authority("ours"), authority("another"));
    let url = tls_server(&ours);
    let folder = tempfile::tempdir().expect("a folder is made");
    let path = |name: &str| folder.path().join(name);
    let both = [another.pem(), ours.pem()].concat();
    for (name, text) in
        [("ours", &ours.pem()), ("another", &another.pem()), ("both", &both), ("key", &"none".to_owned())]
    {
        std::fs::write(path(name), text).expect("a file is written");
    }
    for (params, expected) in [
        (json!({ "ca-file": path("ours") }), ""),
        (json!({ "ca-file": path("both") }), ""),
        (json!({ "ca-file": path("another") }), "no response from https://127.0.0.1:"),
        (json!({}), "no response from https://127.0.0.1:"),
        (json!({ "ca-file": path("missing") }), "cannot read `ca-file` "),
        (json!({ "ca-file": path("key") }), "cannot read `ca-file` "),
    ] {
        let mut all = params.clone();
        all["url"] = json!(url);
        match job(all).run(&context()).await {
            Ok(_) => assert_eq!(expected, "", "{params}"),
            Err(JobError::Retry(error)) => {
                let error = error.to_string();
                assert!(!expected.is_empty() && error.starts_with(expected), "{params}: {error}");
            }
            Err(error) => panic!("{params}: {error}"),
        }
    }
}

#[test]
fn contradictions_and_missing_files_have_remarks() {
    let folder = tempfile::tempdir().expect("a folder is made");
    let (text, none) = (folder.path().join("text"), folder.path().join("none"));
    std::fs::write(&text, "no certificate").expect("a file is written");
    let mut registry = Registry::new();
    billing_kinds::register(&mut registry);
    for (params, expected) in [
        (json!({}), None),
        (json!({ "timeout": "1m" }), None),
        (json!({ "timeout": "61s" }), Some((Severity::Error, "timeout"))),
        (json!({ "ca-file": text }), Some((Severity::Error, "ca-file"))),
        (json!({ "ca-file": none }), Some((Severity::Warning, "ca-file"))),
        (json!({ "body": { "file": none } }), Some((Severity::Warning, "body"))),
        (json!({ "headers": { "A": { "file": none } } }), Some((Severity::Warning, "headers.A"))),
        (json!({ "headers": { "A": { "file": text } } }), None),
    ] {
        let mut all = params.clone();
        all["url"] = json!("http://a");
        let found = registry.remarks("http", all, Duration::from_mins(1));
        let found: Vec<_> = found.iter().map(|remark| (remark.severity, remark.path.join("."))).collect();
        let found: Vec<_> = found.iter().map(|(severity, path)| (*severity, path.as_str())).collect();
        assert_eq!(found, Vec::from_iter(expected), "{params}");
    }
}

#[tokio::test]
async fn slow_request_ends_at_timeout_and_stop() {
    let (server, url) = Server::start().await;
    let slow = job(json!({ "url": format!("{url}/slow"), "timeout": "50ms" }));
    let error = slow.run(&context()).await.expect_err("no response");
    assert!(matches!(error, JobError::Retry(_)), "{error}");
    let slower = job(json!({ "url": format!("{url}/slow"), "timeout": "5s" }));
    let ctx = context();
    let stop = async {
        while server.seen().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ctx.stop_handle().stop(StopReason::Drain);
    };
    let (result, ()) = tokio::join!(slower.run(&ctx), stop);
    assert_eq!(result.expect("no failure"), Outcome::Interrupted { items: 0 });
}

#[tokio::test]
async fn errors_contain_no_secret_of_request() {
    let (_, url) = Server::start().await;
    let unused = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let closed = unused.local_addr().expect("it has one");
    drop(unused);
    let secret = tempfile::NamedTempFile::new().expect("a file is made");
    std::fs::write(secret.path(), r#"{"key": "s3cret-key"}"#).expect("it is written");
    let token = json!({ "X-Token": "s3cret" });
    for (params, expected) in [
        (
            json!({ "url": format!("{url}/404?token=s3cret"), "headers": token }),
            format!("{url} returned status 404: an answer"),
        ),
        (
            json!({ "url": format!("http://user:s3cret@{closed}/s3cret") }),
            format!("no response from http://{closed}: "),
        ),
        // The server has no TLS.
        (
            json!({ "url": url.replace("http:", "https:") + "/s3cret" }),
            "no response from https://127.0.0.1:".to_owned(),
        ),
        (
            json!({
                "url": format!("{}/echo?token=s3cret", url.replace("//", "//me:s3cret@")),
                "method": "POST",
                "headers": { "X": "Bearer s3cret-long", "Y": { "file": secret.path() } },
                "body": { "file": secret.path() },
            }),
            format!("{url} returned status 400: POST *** *** "),
        ),
        (
            json!({ "url": { "env": "NO_SUCH_VARIABLE" } }),
            "cannot read environment variable `NO_SUCH_VARIABLE`".to_owned(),
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
fn invalid_parameters_are_reported_with_path() {
    let mut registry = Registry::new();
    billing_kinds::register(&mut registry);
    for (params, expected) in [
        (json!({}), "parameters of kind `http`: missing field `url`"),
        (
            json!({ "url": "s3cret" }),
            "parameters of kind `http` at `url`: invalid URL: it must begin with http:// or https://",
        ),
        (
            json!({ "url": "ftp://s3cret" }),
            "parameters of kind `http` at `url`: invalid URL: it must begin with http:// or https://",
        ),
        (
            json!({ "url": "http://s3cret s3cret" }),
            "parameters of kind `http` at `url`: invalid URL: invalid uri character",
        ),
        (
            json!({ "url": "http:///s3cret" }),
            "parameters of kind `http` at `url`: invalid URL: invalid format",
        ),
        (
            json!({ "url": "http://me:s3cret@:80/" }),
            "parameters of kind `http` at `url`: invalid URL: the host is missing",
        ),
        (
            json!({ "url": "http://me:s3cret@[::1]:0" }),
            "parameters of kind `http` at `url`: invalid URL: the port must be a number from 1 to 65535",
        ),
        (
            json!({ "url": "http://a", "headers": { "A b": "s3cret" } }),
            "parameters of kind `http` at `headers.A b`: `A b` is not a valid header name: use letters, digits and -",
        ),
        (
            json!({ "url": "http://a", "headers": { "A": "s3cret\n" } }),
            "parameters of kind `http` at `headers.A`: invalid header value: use one line without control characters",
        ),
        (
            json!({ "url": "http://a", "headers": { "A": "1", "a": "2" } }),
            "parameters of kind `http` at `headers.a`: `a` and `A` are the same header: remove one",
        ),
        (
            json!({ "url": "http://a", "headers": { "Content-length": "2" } }),
            "parameters of kind `http` at `headers.Content-length`: `Content-length` is computed from the body: remove it",
        ),
        (
            json!({ "url": "http://a", "headers": "s3cret" }),
            "parameters of kind `http` at `headers`: invalid type: text, expected a table",
        ),
        (
            json!({ "url": "http://a", "expect-status": [200, 99] }),
            "parameters of kind `http` at `expect-status`: invalid status 99: use 100 to 599",
        ),
        (
            json!({ "url": "http://a", "method": "get" }),
            "parameters of kind `http` at `method`: unknown variant `get`, expected one of `GET`, `HEAD`, `POST`, `PUT`, `PATCH`, `DELETE`",
        ),
        (
            json!({ "url": { "environment": "A" } }),
            "parameters of kind `http` at `url.environment`: invalid type: map, expected text, { env = \"NAME\" }, { file = \"/path\" } or { credential = \"name\" }",
        ),
        (
            json!({ "url": "http://a", "timeout": "0s" }),
            "parameters of kind `http` at `timeout`: invalid duration `0s`: it must be greater than zero",
        ),
    ] {
        let error = registry.check("http", params).expect_err("refused").to_string();
        assert_eq!(error, expected);
    }
}
