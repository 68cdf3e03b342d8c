//! Pings, received by a server of the test.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
};

use billing_test_support::{Db, Program, Running, eventually, on_every_engine, process::Signal};

use super::{BILLING, HEARTBEAT, TICK, daemon, seed};

/// Every requested path, in order.
#[derive(Clone)]
struct Monitor {
    url: String,
    received: Arc<Mutex<Vec<String>>>,
}

impl Monitor {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it has one"));
        let received = Arc::default();
        let monitor = Self { url, received: Arc::clone(&received) };
        // It ends with the process of the test.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).expect("a request");
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                received.lock().expect("no holder of the lock panics").push(path);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).expect("it listens");
            }
        });
        monitor
    }

    fn received(&self) -> Vec<String> {
        self.received.lock().expect("no holder of the lock panics").clone()
    }

    async fn hears(&self, paths: &[&str]) {
        eventually(&format!("{paths:?} is received"), async || {
            let received = self.received();
            paths.iter().all(|path| received.iter().any(|received| received == path)).then_some(())
        })
        .await;
    }
}

const FAILING: &str = r#"
[[job]]
name = "dump"
kind = "command"
schedule = { every = "365d" }
run-at-start = true
retry = { max-attempts = 2, backoff = "1s" }
params = { argv = ["false"] }
"#;

async fn monitor_receives_start_success_and_failure(db: &Db) {
    seed(db, 2).await;
    let monitor = Monitor::start();
    // From the environment, from a file, and as text.
    let billing = BILLING.replace(
        "kind = \"billing\"",
        "kind = \"billing\"\nping = { url = { env = \"PING_URL\" }, start = { file = \"start.url\" } }",
    );
    let url = &monitor.url;
    let failing =
        format!("ping = {{ url = \"{url}/never\", start = \"{url}/try\", fail = \"{url}/dead\" }}\n");
    let failing = FAILING.replace("params", &format!("{failing}params"));
    let program = daemon(db, &[&billing, HEARTBEAT, &failing])
        .env("PING_URL", &format!("{url}/works?key=s3cret"))
        .file("start.url", &format!("{url}/start\n"));
    let running = program.start("run --log-format json");
    monitor.hears(&["/start", "/works?key=s3cret", "/dead"]).await;
    let ended = running.terminated().await.expect_code(0);
    let received = monitor.received();
    let place = |path: &str| received.iter().position(|received| received == path);
    assert!(place("/start") < place("/works?key=s3cret"), "{received:?}");
    assert!(!received.iter().any(|path| path == "/never"), "only a success is pinged: {received:?}");
    assert_eq!(
        received.iter().filter(|path| *path == "/try").count(),
        2,
        "each attempt starts: {received:?}"
    );
    assert_eq!(
        received.iter().filter(|path| *path == "/dead").count(),
        1,
        "it is given up once: {received:?}"
    );
    assert!(!ended.text().contains("s3cret"), "{}", ended.text());
}

on_every_engine!(monitor_receives_start_success_and_failure,);

fn watched(monitor: &Monitor, path: &str) -> String {
    format!("{TICK}ping = {{ url = \"{}/{path}\" }}\n", monitor.url)
}

async fn edited(running: &Running, program: Program, text: &str) -> Program {
    let before = running.lines_with("jobs.toml is in force").len();
    let program = program.file("jobs.toml", text);
    running.signal(Signal::HUP);
    running.wait_for_lines("jobs.toml is in force", before + 1).await;
    program
}

#[tokio::test]
async fn edited_ping_applies_at_once() {
    let db = Db::sqlite().await;
    let monitor = Monitor::start();
    let program = daemon(&db, &[TICK]);
    let running = program.start("run");
    running.wait_for_line("`tick` done").await;
    let unwatched = running.lines_with("`tick` done").len();
    let program = edited(&running, program, &watched(&monitor, "first")).await;
    running.wait_for_line("jobs.toml: tick: ping").await;
    monitor.hears(&["/first"]).await;
    let program = edited(&running, program, &watched(&monitor, "second")).await;
    monitor.hears(&["/second"]).await;
    let _program = edited(&running, program, TICK).await;
    let done = running.lines_with("`tick` done").len();
    running.wait_for_lines("`tick` done", done + 5).await;
    // A daemon that ends waits for its last pings.
    running.terminated().await.expect_code(0);
    let received = monitor.received();
    // One run may have been in progress when the file was read.
    assert!(received.len() <= done - unwatched + 1, "it pings no more: {received:?}");
    let last = received.iter().rposition(|path| path == "/first").expect("it was received");
    let first = received.iter().position(|path| path == "/second").expect("it was received");
    assert!(last < first, "the old address gets no more requests: {received:?}");
}
