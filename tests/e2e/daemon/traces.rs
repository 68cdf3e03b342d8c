//! The daemon's traces, as received by a collector in the test.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use billing_test_support::{Db, Program, eventually, on_every_engine, process::Signal};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1 as otlp,
};
use prost::Message as _;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{BILLING, HEARTBEAT, TICK, check_all_charged_once, daemon, fetch, job, seed};

const ERROR: i32 = otlp::status::StatusCode::Error as i32;

/// A value of the environment that must be in no output.
const KEY: &str = "c4n4ry-of-the-collector";

type Fields = HashMap<String, String>;

/// A span, as it arrived.
#[derive(Clone, Debug)]
struct Span {
    trace: String,
    id: String,
    /// Empty if it is the root.
    parent: String,
    name: String,
    kind: i32,
    fields: Fields,
    /// The events of the span, each with its fields.
    events: Vec<(String, Fields)>,
    status: i32,
    description: String,
    /// The id of the trace that it belongs to.
    resource: Arc<Fields>,
}

impl Span {
    #[track_caller]
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).unwrap_or_else(|| panic!("{name} is not in {self:?}"))
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn fields(attributes: &[KeyValue]) -> Fields {
    attributes
        .iter()
        .map(|attribute| {
            let value = match &attribute.value {
                Some(AnyValue { value: Some(any_value::Value::StringValue(text)) }) => text.clone(),
                Some(AnyValue { value: Some(any_value::Value::IntValue(number)) }) => number.to_string(),
                other => format!("{other:?}"),
            };
            (attribute.key.clone(), value)
        })
        .collect()
}

fn spans(request: &ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for group in &request.resource_spans {
        let resource = group.resource.as_ref().map(|resource| fields(&resource.attributes));
        let resource = Arc::new(resource.unwrap_or_default());
        for span in group.scope_spans.iter().flat_map(|scope| &scope.spans) {
            let status = span.status.clone().unwrap_or_default();
            spans.push(Span {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                name: span.name.clone(),
                kind: span.kind,
                fields: fields(&span.attributes),
                events: span
                    .events
                    .iter()
                    .map(|event| (event.name.clone(), fields(&event.attributes)))
                    .collect(),
                status: status.code,
                description: status.message,
                resource: Arc::clone(&resource),
            });
        }
    }
    spans
}

/// The behaviour of a collector.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Takes,
    Refuses,
    /// It reads, and never responds.
    Silent,
}

#[derive(Clone)]
struct Collector {
    url: String,
    manner: Arc<Mutex<Manner>>,
    received: Arc<Mutex<Received>>,
}

#[derive(Default)]
struct Received {
    /// The heads of the requests, in lower case.
    requests: Vec<String>,
    spans: Vec<Span>,
}

impl Collector {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it has one"));
        let collector = Self { url, manner: Arc::new(Mutex::new(manner)), received: Arc::default() };
        let own = collector.clone();
        // It ends with the process of the test.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (own, stream) = (own.clone(), stream.expect("a connection"));
                thread::spawn(move || own.listen(&stream));
            }
        });
        collector
    }

    fn behave(&self, manner: Manner) {
        *self.manner.lock().expect("no holder of the lock panics") = manner;
    }

    /// Answers one connection until it is closed.
    fn listen(&self, mut stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        loop {
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).is_ok_and(|bytes| bytes == 0) || line.is_empty() {
                    return;
                }
                let line = line.trim().to_ascii_lowercase();
                if let Some(number) = line.strip_prefix("content-length: ") {
                    length = number.parse().expect("a number");
                }
                if line.is_empty() {
                    break;
                }
                head = head + &line + "\n";
            }
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_err() {
                return;
            }
            let manner = *self.manner.lock().expect("no holder of the lock panics");
            let request = ExportTraceServiceRequest::decode(&body[..]).expect("it is OTLP");
            let mut got = self.received.lock().expect("no holder of the lock panics");
            got.requests.push(head);
            if matches!(manner, Manner::Takes) {
                got.spans.extend(spans(&request));
            }
            drop(got);
            let status = match manner {
                Manner::Takes => "200 OK",
                Manner::Refuses => "401 Unauthorized",
                Manner::Silent => continue,
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn requests(&self) -> Vec<String> {
        self.received.lock().expect("no holder of the lock panics").requests.clone()
    }

    fn spans(&self) -> Vec<Span> {
        self.received.lock().expect("no holder of the lock panics").spans.clone()
    }

    /// Those with this name.
    fn named(&self, name: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.name == name).collect()
    }

    /// Waits for the first span with this name.
    async fn wait_for(&self, name: &str) -> Span {
        eventually(&format!("the collector receives `{name}`"), async || self.named(name).into_iter().next())
            .await
    }
}

/// `program`, which sends its traces to `collector` at once.
fn traced(program: Program, collector: &Collector) -> Program {
    program.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url).env("OTEL_BSP_SCHEDULE_DELAY", "20")
}

/// Those in `spans` right below `parent`.
fn below<'a>(spans: &'a [Span], parent: &Span) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.parent == parent.id && span.trace == parent.trace).collect()
}

#[track_caller]
fn only<'a>(spans: &[&'a Span], name: &str) -> &'a Span {
    let named: Vec<&&Span> = spans.iter().filter(|span| span.name == name).collect();
    let [span] = named[..] else { panic!("{} spans are called `{name}` among {spans:?}", named.len()) };
    span
}

async fn billing_run_is_one_trace(db: &Db) {
    let organizations = seed(db, 3).await;
    let collector = Collector::start(Manner::Takes);
    // So much later that nothing is sent before the end, which sends what is left.
    let program = daemon(db, &[BILLING])
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &format!("{}/custom", collector.url))
        .env("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        .env("OTEL_SERVICE_NAME", "billing-of-a-test")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test%20bed")
        .env("OTEL_EXPORTER_OTLP_HEADERS", &format!("authorization=Bearer%20{KEY}"));
    let running = program.start("run --log-format json");
    running.wait_for_line("job `billing` done").await;
    eventually("the run is recorded", async || {
        (fetch(db, "SELECT count(*) FROM scheduler_runs WHERE status = 'done'").await == "1").then_some(())
    })
    .await;
    assert!(collector.requests().is_empty(), "no span waits for others");
    let ended = running.terminated().await.expect_code(0);
    check_all_charged_once(db, &organizations).await;

    let requests = collector.requests();
    assert!(requests[0].starts_with("post /custom http/1.1"), "{requests:?}");
    assert!(requests[0].contains(&format!("authorization: bearer {KEY}")), "{requests:?}");
    assert!(requests[0].contains("content-type: application/x-protobuf"), "{requests:?}");
    let spans = collector.spans();
    let roots: Vec<&Span> = spans.iter().filter(|span| span.parent.is_empty()).collect();
    let run = only(&roots, "run billing");
    for (name, value) in [
        ("job.name", "billing"),
        ("job.kind", "billing"),
        ("attempt", "1"),
        ("outcome", "done"),
        ("items", "3"),
        ("run.id", &fetch(db, "SELECT id FROM scheduler_runs WHERE job = 'billing'").await),
    ] {
        assert_eq!(run.field(name), value, "{name}");
    }
    let details = fetch(db, "SELECT CAST(details AS text) FROM scheduler_runs WHERE job = 'billing'").await;
    let details: Value = serde_json::from_str(&details).expect("an object");
    assert_eq!(
        (&details["trace_id"], &details["hours"]),
        (&run.trace.clone().into(), &9.into()),
        "{details}"
    );
    assert!(run.field("scheduled_at").ends_with(" UTC"), "{run:?}");
    assert_eq!(run.status, 0, "{run:?}");
    for (name, value) in [("service.name", "billing-of-a-test"), ("deployment.environment.name", "test bed")]
    {
        assert_eq!(run.resource.get(name).map(String::as_str), Some(value));
    }
    for name in ["service.instance.id", "service.version", "host.name", "process.pid"] {
        assert!(run.resource.get(name).is_some_and(|value| !value.is_empty()), "{name}: {:?}", run.resource);
    }
    assert!(
        run.events.iter().any(|(output, _)| output == "charged 0.09 USD for 9 hours of 3 instances, 0 held"),
        "{run:?}"
    );

    let of_run = below(&spans, run);
    for step in ["read the time of the database", "read the plans", "sum up the run"] {
        only(&of_run, step);
    }
    let batches: Vec<&&Span> = of_run.iter().filter(|span| span.name == "batch").collect();
    let posted: Vec<&&&Span> = batches.iter().filter(|batch| batch.status == 0).collect();
    assert_eq!(posted.len(), 3, "a batch an organization: {batches:?}");
    let system = if db.backend() == sea_orm::DbBackend::Sqlite { "sqlite" } else { "postgresql" };
    for batch in posted {
        for (name, value) in [
            ("instances", "1"),
            ("charged", "1"),
            ("charges", "1"),
            ("held", "0"),
            ("hours", "3"),
            ("amounts", "0.03 USD"),
        ] {
            assert_eq!(batch.field(name), value, "{name}");
        }
        let steps = below(&spans, batch);
        for step in [
            "begin",
            "lock wallets",
            "read due instances",
            "write billing_charges",
            "write wallets",
            "commit",
        ] {
            let step = only(&steps, step);
            assert_eq!(step.kind, otlp::span::SpanKind::Client as i32, "{step:?}");
            assert_eq!(step.field("db.system.name"), system);
        }
    }
    // What is for traces alone makes the log neither longer nor noisier, and the key is in neither.
    for line in &ended.out {
        let line: Value = serde_json::from_str(line).expect("an object a line");
        let names = line["spans"].as_array().into_iter().flatten().map(|span| span["name"].clone());
        assert!(names.clone().all(|name| name == "run"), "{line}");
    }
    assert!(!ended.text().contains(KEY) && !format!("{spans:?}").contains(KEY), "{}", ended.text());
}

async fn failed_run_span_hides_secret(db: &Db) {
    let collector = Collector::start(Manner::Takes);
    let failing = |kind: &str| job(kind, &format!("test.{kind}"), "365d", "run-at-start = true");
    let jobs = failing("broken") + &failing("leaks-secret");
    // The job panics with the address of the database, and that of SQLite has no password.
    let secret = (db.backend() != sea_orm::DbBackend::Sqlite).then_some("c4n4ry");
    let url = secret.map_or(db.url.clone(), |secret| db.url.replacen('@', &format!(":{secret}@"), 1));
    let program = traced(daemon(db, &[&jobs]).env("DATABASE_URL", &url), &collector);
    let running = program.start("run");
    let broken = collector.wait_for("run broken").await;
    assert_eq!((broken.status, broken.description.as_str()), (ERROR, "broken as designed"));
    assert_eq!(broken.field("outcome"), "dead");
    let leaks = collector.wait_for("run leaks-secret").await;
    assert_eq!(leaks.status, ERROR);
    assert!(leaks.description.starts_with("the job panicked: cannot continue with "), "{leaks:?}");
    assert!(leaks.events.iter().any(|(output, _)| output.contains("panicked at")), "{leaks:?}");
    running.terminated().await.expect_code(0);
    if let Some(secret) = secret {
        assert!(leaks.description.contains(":***@"), "{leaks:?}");
        let all = format!("{:?}", collector.spans());
        assert!(!all.contains(secret), "{all}");
    }
}

on_every_engine!(billing_run_is_one_trace, failed_run_span_hides_secret,);

#[tokio::test]
async fn http_requests_and_reloads_are_spans() {
    let db = Db::sqlite().await;
    let collector = Collector::start(Manner::Takes);
    let http = "[http]\nlisten = \"127.0.0.1:0\"\n";
    let program = traced(daemon(&db, &[http, TICK]), &collector);
    let running = program.start("run");
    let address = running.wait_for_line("listening for HTTP on ").await;
    let address = address.rsplit_once(' ').expect("an address ends the line").1.to_owned();
    let request = async |method: &str, path: &str, more: &str| {
        let mut stream = tokio::net::TcpStream::connect(&address).await.expect("the daemon listens");
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("the server answers");
    };
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    request("GET", "/healthz?key=s3cret", &format!("traceparent: 00-{trace}-00f067aa0ba902b7-01\r\n")).await;
    request("FROBNICATE", "/nowhere", "").await;
    let answered = collector.wait_for("GET /healthz").await;
    assert_eq!(answered.kind, otlp::span::SpanKind::Server as i32);
    assert_eq!(
        (answered.field("http.route"), answered.field("http.response.status_code")),
        ("/healthz", "200")
    );
    assert_eq!((answered.trace.as_str(), answered.parent.as_str()), (trace, "00f067aa0ba902b7"));
    let refused = collector.wait_for("_OTHER").await;
    assert_eq!(refused.field("http.response.status_code"), "405");
    assert!(refused.parent.is_empty() && refused.trace != trace, "{refused:?}");

    let program = program.file("jobs.toml", &[http, TICK, "# edited\n"].concat());
    running.signal(Signal::HUP);
    running.wait_for_line("was read again: no job is different").await;
    let _program = program.file("jobs.toml", "[[job]]\n");
    running.signal(Signal::HUP);
    running.wait_for_line("everything stays as it was").await;
    let reloads =
        eventually("two reloads", async || Some(collector.named("reload")).filter(|all| all.len() == 2))
            .await;
    assert_eq!((reloads[0].field("outcome"), reloads[0].status), ("accepted", 0));
    assert_eq!((reloads[1].field("outcome"), reloads[1].status), ("refused", ERROR));
    running.terminated().await.expect_code(0);
    let all = format!("{:?}", collector.spans());
    assert!(!all.contains("s3cret"), "the query is no part of a name: {all}");
}

#[tokio::test]
async fn unreachable_collector_is_logged_once() {
    let db = Db::sqlite().await;
    let organizations = seed(&db, 2).await;
    let collector = Collector::start(Manner::Refuses);
    let program = traced(daemon(&db, &[BILLING, HEARTBEAT, TICK]), &collector);
    let running = program.env("OTEL_EXPORTER_OTLP_HEADERS", &format!("x-key={KEY}")).start("run");
    running.wait_for_line(&format!("[INFO] traces go to {}/v1/traces", collector.url)).await;
    running.wait_for_line("job `billing` done").await;
    eventually("it was sent several times", async || (collector.requests().len() >= 4).then_some(())).await;
    let warning = format!(
        "cannot send traces to {}/v1/traces: the collector responded 401 Unauthorized; ",
        collector.url
    );
    assert_eq!(running.lines_with("cannot send traces").len(), 1);
    assert_eq!(running.lines_with(&warning).len(), 1, "{:?}", running.lines_with("traces"));
    collector.behave(Manner::Takes);
    running.wait_for_line(&format!("traces go to {}/v1/traces again", collector.url)).await;
    collector.wait_for("run tick").await;
    let ended = running.terminated().await.expect_code(0);
    assert!(!ended.text().contains(KEY), "{}", ended.text());
    check_all_charged_once(&db, &organizations).await;
    // The exporter creates no spans.
    let known = ["run ", "batch", "reload"];
    let spans = collector.spans();
    let roots = spans.iter().filter(|span| span.parent.is_empty());
    for root in roots {
        assert!(known.iter().any(|known| root.name.starts_with(known)), "{root:?}");
    }
}

#[tokio::test]
async fn silent_collector_delays_nothing() {
    let db = Db::sqlite().await;
    let organizations = seed(&db, 2).await;
    let collector = Collector::start(Manner::Silent);
    // It would wait for an answer for an hour.
    let program =
        traced(daemon(&db, &[BILLING, TICK]), &collector).env("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000");
    let program = program.env("OTEL_BSP_MAX_QUEUE_SIZE", "4").env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1");
    let running = program.start("run");
    running.wait_for_line("job `billing` done").await;
    eventually("a request waits", async || (!collector.requests().is_empty()).then_some(())).await;
    // More than the queue holds.
    running.wait_for_lines("job `tick` done", 3).await;
    running.terminated().await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
}

#[tokio::test]
async fn invalid_trace_setting_is_logged() {
    let db = Db::sqlite().await;
    let collector = Collector::start(Manner::Takes);
    let program = traced(daemon(&db, &[TICK]), &collector);
    let sampler = program.clone().env("OTEL_TRACES_SAMPLER", "some").start("run");
    let warning = sampler.wait_for_line("Unrecognized sampler type 'some'").await;
    assert!(warning.contains("[WARN]"), "{warning}");
    sampler.wait_for_line("job `tick` done").await;
    sampler.terminated().await.expect_code(0);
    let requests_before = collector.requests().len();
    let wrong = program.clone().env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4317");
    let running = wrong.start("run");
    let warning = running
        .wait_for_line("cannot send traces: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: the URL must begin")
        .await;
    assert!(warning.contains("[WARN]"), "{warning}");
    running.wait_for_line("job `tick` done").await;
    running.terminated().await.expect_code(0);
    let checked = wrong.run("check").await.expect_code(0);
    assert!(
        checked.err.iter().any(|line| line.starts_with("warning: ") && line.contains("TRACES_ENDPOINT")),
        "{checked:?}"
    );
    let examined = wrong.run("doctor").await;
    assert!(examined.text().contains("TRACES_ENDPOINT: the URL must begin"), "{}", examined.text());
    for (name, value) in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_SAMPLER", "always_off")] {
        let running = program.clone().env(name, value).start("run");
        running.wait_for_line("job `tick` done").await;
        running.terminated().await.expect_code(0);
    }
    assert_eq!(collector.requests().len(), requests_before, "{:?}", collector.requests());
}
