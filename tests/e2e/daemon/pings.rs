//! Signs of life, heard by a server of our own.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
};

use billing_test_support::{Db, Program, Running, eventually, on_every_engine, process::Signal};

use super::{BILLING, HEARTBEAT, TICK, daemon, seed};

/// Every path that was asked for, in order.
#[derive(Clone)]
struct Monitor {
    url: String,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Monitor {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it has one"));
        let heard = Arc::default();
        let monitor = Self { url, heard: Arc::clone(&heard) };
        // It ends with the process of the test.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).expect("a request");
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                heard.lock().expect("nobody panics in there").push(path);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).expect("it listens");
            }
        });
        monitor
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("nobody panics in there").clone()
    }

    async fn hears(&self, paths: &[&str]) {
        eventually(&format!("{paths:?} is heard"), async || {
            let heard = self.heard();
            paths.iter().all(|path| heard.iter().any(|heard| heard == path)).then_some(())
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

async fn a_monitor_hears_that_billing_starts_and_works_and_that_a_job_is_given_up(db: &Db) {
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
    let heard = monitor.heard();
    let place = |path: &str| heard.iter().position(|heard| heard == path);
    assert!(place("/start") < place("/works?key=s3cret"), "{heard:?}");
    assert!(!heard.iter().any(|path| path == "/never"), "only a success is pinged: {heard:?}");
    assert_eq!(heard.iter().filter(|path| *path == "/try").count(), 2, "each attempt starts: {heard:?}");
    assert_eq!(heard.iter().filter(|path| *path == "/dead").count(), 1, "it is given up once: {heard:?}");
    assert!(!ended.text().contains("s3cret"), "{}", ended.text());
}

on_every_engine!(a_monitor_hears_that_billing_starts_and_works_and_that_a_job_is_given_up,);

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
async fn an_edited_ping_is_in_force_at_once_and_a_removed_one_is_not_heard_any_more() {
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
    // A daemon that ends waits for its last signs.
    running.terminated().await.expect_code(0);
    let heard = monitor.heard();
    // One run may have been under way when the file was read.
    assert!(heard.len() <= done - unwatched + 1, "nobody pings any more: {heard:?}");
    let last = heard.iter().rposition(|path| path == "/first").expect("it was heard");
    let first = heard.iter().position(|path| path == "/second").expect("it was heard");
    assert!(last < first, "the old address is not asked any more: {heard:?}");
}
