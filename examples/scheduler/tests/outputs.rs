//! Runs each program and compares its output.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

fn output(program: &str) -> String {
    let output = Command::new(program).output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A program that runs until a signal. It gets SIGKILL if a test fails.
struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(program: &str) -> Self {
        let mut child = Command::new(program).stdout(Stdio::piped()).spawn().expect("the program starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// Sends SIGTERM; returns whether the program ended with success.
    fn stop(mut self) -> bool {
        let sent = Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(sent.is_ok_and(|sent| sent.success()), "the program runs");
        self.child.wait().expect("it ends").success()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It fails if the program has ended, as it should.
        let _ = self.child.kill();
    }
}

#[test]
fn hello_greets_each_second_until_signal() {
    let mut hello = Running::start(env!("CARGO_BIN_EXE_hello"));
    for _ in 0..2 {
        let line = hello.line();
        assert!(line.starts_with("hello, `greet` of 20") && line.ends_with('Z'), "{line}");
    }
    assert!(hello.stop());
}

#[test]
fn hello_has_at_most_fifteen_lines() {
    assert!(include_str!("../src/bin/hello.rs").lines().count() <= 15);
}

#[test]
fn crate_readme_contains_hello_verbatim() {
    let program = include_str!("../src/bin/hello.rs").split_once("\n\n").expect("a comment comes first").1;
    let readme = include_str!("../../../billing-scheduler/README.md");
    assert!(readme.contains(program), "{program}");
}

#[test]
fn cron_follows_local_time() {
    assert_eq!(
        output(env!("CARGO_BIN_EXE_cron")),
        "`nightly` of 2026-10-24T00:30:00Z\n\
         `nightly` of 2026-10-25T00:30:00Z\n\
         `weekly` of 2026-10-26T08:00:00Z\n"
    );
}

#[test]
fn state_is_shared_between_runs() {
    assert_eq!(output(env!("CARGO_BIN_EXE_state")), "run 1\nrun 2\nrun 3\n");
}

#[test]
fn dynamic_jobs_are_listed_after_changes() {
    let output = output(env!("CARGO_BIN_EXE_dynamic"));
    // A second run of the first job may come before it is changed.
    let mut lines: Vec<_> = output.lines().collect();
    lines.dedup();
    assert_eq!(
        lines,
        [
            "hello ada",
            "finished greet-ada",
            "greet-ada: every 1d",
            "greet-bob: every 1h",
            "1 job is left",
            "error: unknown job `greet-eve`",
        ]
    );
}

#[test]
fn queue_retries_and_reports() {
    assert_eq!(
        output(env!("CARGO_BIN_EXE_queue")),
        "a second mail to bob: not added\n\
         dead after attempt 1: no such address\n\
         retrying after attempt 1: no connection\n\
         done after attempt 2\n"
    );
}

/// Sends a request; returns the status and the body.
fn request(address: &str, line: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    write!(stream, "{line} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status"), body.to_owned())
}

#[test]
fn web_server_lists_and_runs_jobs() {
    let mut web = Running::start(env!("CARGO_BIN_EXE_web"));
    let address = web.line().trim_start_matches("http://").to_owned();
    let list = r#"[{"name":"report","schedule":"0 30 2 * * * in UTC"}]"#;
    assert_eq!(request(&address, "GET /jobs"), (200, list.to_owned()));
    assert_eq!(
        request(&address, "POST /jobs/report/run"),
        (200, r#"{"items":0,"status":"done"}"#.to_owned())
    );
    assert_eq!(request(&address, "POST /jobs/other/run").0, 409);
    assert!(web.stop());
}
