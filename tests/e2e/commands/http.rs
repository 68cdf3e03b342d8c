//! The HTTP interface: responses and access.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::Path,
    process::Command,
};

use billing_test_support::{Db, Program, Running, eventually, on_every_engine, skipped};
use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use super::keys;
use crate::daemon::{BILLING, HEARTBEAT, daemon, fetch, seed};

pub(crate) const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\nallowed-hosts = [\"billing.internal\"]\n";
const AUDIT: &str = "[[job]]\nname = 'audit'\nkind = 'audit'\nschedule = { every = '1s' }\n";

pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

pub(super) async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    line: &str,
    host: &str,
) -> Answer {
    let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("the server answers");
    let (headers, body) = text.split_once("\r\n\r\n").expect("headers end");
    let status = headers.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    Answer { status, headers: headers.to_ascii_lowercase(), body: body.to_owned() }
}

/// The addresses that a daemon listens on.
pub(crate) async fn address(daemon: &Running) -> String {
    let line = daemon.wait_for_line("listening for HTTP on ").await;
    line.rsplit_once(' ').expect("an address ends the line").1.to_owned()
}

pub(crate) async fn get(address: &str, path: &str) -> Answer {
    let stream = TcpStream::connect(address).await.expect("the daemon listens");
    exchange(stream, &format!("GET {path}"), "localhost").await
}

async fn daemon_serves_billing_status(db: &Db) {
    let organization = seed(db, 2).await[0].to_string();
    let program = daemon(db, &[HTTP, BILLING, HEARTBEAT, AUDIT]);
    let running = program.start("run");
    let address = address(&running).await;
    running.wait_for_line("job `billing` done").await;
    running.wait_for_line("job `audit` done").await;
    eventually("the status is healthy, and the run is recorded", async || {
        let answer = get(&address, "/api/status").await;
        let status = (answer.status == 200).then(|| answer.json())?;
        (status["ok"] == true && !status["last_run"].is_null()).then_some(())
    })
    .await;

    assert_eq!(get(&address, "/healthz").await.body, "ok\n");
    let ready = get(&address, "/readyz").await;
    assert_eq!((ready.status, ready.body.as_str()), (200, "ready\n"));
    let output = super::json(&program.run("status --json").await.expect_code(0));
    let status = get(&address, "/api/status").await.json();
    assert_eq!(keys(&status), keys(&output), "the command and the interface return the same");
    assert_eq!(status["last_run"], output["last_run"]);
    let jobs = get(&address, "/api/jobs").await.json();
    assert_eq!(jobs.as_array().map(Vec::len), Some(3));
    let runs = get(&address, "/api/runs?job=billing&limit=10").await.json();
    assert_eq!((runs.as_array().map(Vec::len), &runs[0]["id"]), (Some(1), &status["last_run"]["id"]));
    for invalid in ["limit=many", "job=a%00", "job=%0a"] {
        assert_eq!(get(&address, &format!("/api/runs?{invalid}")).await.status, 400, "{invalid}");
    }

    // As the original's panel reads it.
    let health = get(&address, "/api/health/billing-daemon").await.json();
    assert_eq!(keys(&health), ["daemon", "success", "timestamp"]);
    let health = &health["daemon"];
    assert_eq!(
        keys(health),
        [
            "instancesBilled",
            "isStale",
            "lastRun",
            "lastRunSuccess",
            "nextScheduledRun",
            "status",
            "totalAmount",
            "totalHours",
            "uptimeMinutes",
            "warningThresholdExceeded",
        ]
    );
    assert_eq!((&health["status"], &health["lastRunSuccess"]), (&json!("running"), &json!(true)));
    assert_eq!((&health["instancesBilled"], &health["totalAmount"]), (&json!(2), &json!(0.06)));
    assert_eq!((&health["isStale"], &health["warningThresholdExceeded"]), (&json!(false), &json!(false)));
    assert!(health["lastRun"].is_string() && health["nextScheduledRun"].is_string(), "{health}");

    // Responses are cached for two seconds, so the first audit may be missing at first.
    let metrics = eventually("the audit is in the metrics", async || {
        let metrics = get(&address, "/metrics").await.body;
        metrics.contains("\nbilling_daemon_audit_violations ").then_some(metrics)
    })
    .await;
    for line in [
        "billing_daemon_runs_total{job=\"billing\",status=\"done\"} 1",
        "billing_daemon_charged_instances_total 2",
        "billing_daemon_charged_hours_total 6",
        "billing_daemon_charged_ten_thousandths_total{currency=\"USD\"} 600",
        "billing_daemon_held_instances{reason=\"no_price\"} 0",
        "billing_daemon_audit_violations 0",
        "billing_daemon_daemons_alive 1",
        "billing_daemon_problems 0",
        "billing_daemon_lease_claims_total{job=\"billing\"} 1",
        "billing_daemon_config_reloads_total{result=\"refused\"} 0",
        "# TYPE billing_daemon_run_duration_seconds histogram",
    ] {
        assert!(metrics.lines().any(|shown| shown == line), "no `{line}` in:\n{metrics}");
    }
    assert!(metrics.contains("billing_daemon_build_info{version="), "{metrics}");

    let document = get(&address, "/api/openapi.json").await.json();
    for path in document["paths"].as_object().expect("paths").keys() {
        let answer = get(&address, &path.replace("{organization}", &organization)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert!(!answer.headers.contains("access-control-"), "no page of another site reads this");
    }
    running.terminated().await.expect_code(0);
}

async fn failing_billing_makes_daemon_unready(db: &Db) {
    seed(db, 1).await;
    let running = daemon(db, &[HTTP, BILLING, HEARTBEAT, AUDIT]).start("run");
    let address = address(&running).await;
    running.wait_for_line("job `billing` done").await;
    // It is logged before it is written.
    let recorded = "SELECT count(*) FROM scheduler_runs WHERE job = 'billing'";
    eventually("the run is recorded", async || (fetch(db, recorded).await == "1").then_some(())).await;
    db.execute("UPDATE scheduler_runs SET status = 'dead', error = 'on purpose' WHERE job = 'billing'").await;
    let refused = eventually("it is not ready", async || {
        let answer = get(&address, "/readyz").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert!(refused.body.contains("billing_failed: "), "{}", refused.body);
    assert_eq!(get(&address, "/healthz").await.status, 200, "the process lives");
    assert_eq!(get(&address, "/metrics").await.status, 200);
}

/// Another transaction holds the wallets: no lease conflicts with that, so billing's own errors are reported.
#[tokio::test]
async fn batch_errors_are_counted() {
    let db = Db::g1_role().await;
    seed(&db, 2).await;
    let held = db.begin().await.expect("a transaction begins");
    held.execute_unprepared("UPDATE wallets SET currency = currency").await.expect("the wallets are there");
    let running = daemon(&db, &[HTTP, BILLING]).env("BILLING_LOCK_TIMEOUT_MS", "20").start("run");
    let address = address(&running).await;
    eventually("it is reported", async || {
        let metrics = get(&address, "/metrics").await.body;
        let conflicts = "billing_daemon_database_errors_total{class=\"conflict\"} ";
        let counted = metrics.lines().find_map(|line| line.strip_prefix(conflicts)?.parse::<u64>().ok());
        (counted.expect("it is counted from the start") > 0).then_some(())
    })
    .await;
    held.rollback().await.expect("nothing was changed");
    running.wait_for_line("job `billing` done").await;
    running.terminated().await.expect_code(0);
}

on_every_engine!(daemon_serves_billing_status, failing_billing_makes_daemon_unready,);

#[tokio::test]
async fn invalid_http_requests_are_rejected() {
    let db = Db::sqlite().await;
    let running = daemon(&db, &[HTTP, BILLING, HEARTBEAT]).start("run");
    let address = address(&running).await;
    for (line, host, status) in [
        ("GET /healthz", "evil.example", 421),
        ("GET /healthz", "localhost.evil.example", 421),
        ("GET /healthz", "billing.internal", 200),
        ("GET /healthz", "127.0.0.1:1", 200),
        ("POST /api/jobs", "localhost", 405),
        ("DELETE /api/runs", "localhost", 405),
        ("OPTIONS /api/status", "localhost", 405),
        ("GET /", "localhost", 404),
        ("GET /api/../../etc/passwd", "localhost", 404),
    ] {
        let stream = TcpStream::connect(&address).await.expect("the daemon listens");
        let answer = exchange(stream, line, host).await;
        assert_eq!(answer.status, status, "{line} of {host}: {}", answer.body);
    }
    running.terminated().await.expect_code(0);
}

#[tokio::test]
async fn socket_exists_while_daemon_runs() {
    let db = Db::sqlite().await;
    let program = daemon(&db, &["[http]\nlisten = \"unix:@\"\nallowed-uids = [1]\n", BILLING, HEARTBEAT]);
    let socket = program.folder().join("http.sock");
    let jobs = std::fs::read_to_string(program.folder().join("jobs.toml")).expect("it was written");
    let program = program.file("jobs.toml", &jobs.replace('@', &socket.display().to_string()));
    for leave_behind in [true, false] {
        let running = program.start("run");
        running.wait_for_line("listening for HTTP on ").await;
        assert_eq!(std::fs::metadata(&socket).expect("it is there").mode(), 0o140_666);
        let stream = UnixStream::connect(&socket).await.expect("the daemon listens");
        let answer = exchange(stream, "GET /healthz", "whatever").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let second = program.run("run").await.expect_code(78);
        assert!(second.text().contains("another process listens on"), "{}", second.text());
        if leave_behind {
            running.signal(billing_test_support::process::Signal::KILL);
            running.ended().await;
            assert!(socket.exists());
        } else {
            running.terminated().await.expect_code(0);
            assert!(!socket.exists());
        }
    }
}

/// Users of no account, so that nothing else on this host is theirs.
const MONITOR: u32 = 64_001;
const STRANGER: u32 = 64_002;

/// The unit's mode of the socket's folder.
fn runtime_folder_mode() -> u32 {
    let unit = include_str!("../../../systemd/billing-daemon.service");
    let mode = unit
        .lines()
        .find_map(|line| line.strip_prefix("RuntimeDirectoryMode="))
        .expect("the unit has the setting");
    u32::from_str_radix(mode, 8).expect("a mode")
}

/// The mode of a socket is wide for `allowed-uids`, so the daemon must distinguish users.
#[tokio::test]
async fn shared_socket_admits_listed_users_only() {
    if !rustix::process::geteuid().is_root() {
        skipped("this is not root: a shared socket is not tried as another user");
        return;
    }
    let db = Db::sqlite().await;
    // As systemd makes it, in a folder that every user may enter; those users must be able to run the client as well.
    let folder = tempfile::tempdir().expect("a folder");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    mode(folder.path(), 0o755).expect("our own folder");
    let client = folder.path().join("socket-client");
    fs::copy(env!("CARGO_BIN_EXE_socket-client"), &client).expect("copied");
    let runtime = folder.path().join("billing-daemon");
    fs::create_dir(&runtime).expect("our own folder");
    mode(&runtime, runtime_folder_mode()).expect("our own folder");
    let socket = runtime.join("http.sock");
    let answer = |uid: u32| {
        let mut command = Command::new(&client);
        // A change of the user alone would leave root's groups.
        let output = command.arg(&socket).arg("/healthz").uid(uid).gid(uid).current_dir("/").output();
        let output = output.expect("the program runs");
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).trim().to_owned()
    };
    for (allowed, named) in [
        (format!("allowed-uids = [{MONITOR}]"), true),
        ("allowed-uids = []".to_owned(), false),
        (String::new(), false),
    ] {
        let http = format!("[http]\nlisten = \"unix:{}\"\n{allowed}\n", socket.display());
        let running = daemon(&db, &[&http, BILLING, HEARTBEAT]).start("run");
        running.wait_for_line("listening for HTTP on ").await;
        for (uid, is_answered) in [(0, true), (MONITOR, named), (STRANGER, false)] {
            let answer = answer(uid);
            // Rejected by the mode of the socket, or by the daemon.
            let refused = answer.contains("Permission denied") || answer == "HTTP/1.1 403 Forbidden";
            let expected = if is_answered { answer == "HTTP/1.1 200 OK" } else { refused };
            assert!(expected, "{uid} with `{allowed}`: {answer}");
        }
        running.terminated().await.expect_code(0);
    }
}

const TOKEN: &str = "0123456789abcdef-of-a-test";

/// A daemon that other hosts can reach, with this `token` in `[http]`.
fn reachable_daemon(db: &Db, token: &str) -> Program {
    let http = format!("[http]\nlisten = \"0.0.0.0:0\"\n{token}\n");
    daemon(db, &[&http, BILLING, HEARTBEAT])
}

fn with_token_file(program: Program, text: &str, mode: u32) -> Program {
    let program = program.file("token", text);
    let path = program.folder().join("token");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own file");
    program
}

#[tokio::test]
async fn address_of_network_needs_token() {
    let db = Db::sqlite().await;
    let program = reachable_daemon(&db, "");
    for command in ["check", "run"] {
        let ended = program.run(command).await.expect_code(78);
        let expected = "jobs.toml:2:10: `listen`: other hosts can reach `0.0.0.0:0`, and `token` is not set";
        assert_eq!(ended.err[0], expected, "{}", ended.text());
    }
}

#[tokio::test]
async fn requests_need_configured_token() {
    for token in ["token = { file = 'token' }", "token = { env = 'HTTP_TOKEN' }"] {
        let db = Db::sqlite().await;
        let program = reachable_daemon(&db, token).env("HTTP_TOKEN", TOKEN);
        let running = with_token_file(program, &format!("{TOKEN}\n"), 0o600).start("run");
        let address = address(&running).await.replace("0.0.0.0", "127.0.0.1");
        running.wait_for_line("job `billing` done").await;
        let wrong = TOKEN.replace('0', "1");
        for (path, given, status) in [
            ("/metrics", Some(TOKEN), 200),
            ("/api/status", Some(TOKEN), 200),
            ("/readyz", Some(TOKEN), 200),
            ("/metrics", Some(&*wrong), 401),
            ("/metrics", None, 401),
            ("/readyz", None, 401),
            ("/api/runs", None, 401),
            ("/nowhere", None, 401),
            ("/healthz", None, 200),
        ] {
            let stream = TcpStream::connect(&address).await.expect("the daemon listens");
            let authorization = given.map(|given| format!("\r\nAuthorization: Bearer {given}"));
            let host = format!("10.0.0.1:9464{}", authorization.unwrap_or_default());
            let answer = exchange(stream, &format!("GET {path}"), &host).await;
            assert_eq!(answer.status, status, "{path} with {given:?}: {}", answer.body);
            assert_eq!(answer.headers.contains("www-authenticate: bearer"), status == 401, "{path}");
        }
        let ended = running.terminated().await.expect_code(0);
        assert!(!ended.text().contains(TOKEN), "{}", ended.text());
    }
}

#[tokio::test]
async fn unusable_token_prevents_start() {
    let db = Db::sqlite().await;
    let unusable = "error: cannot use `token` of [http] in jobs.toml: ";
    for (text, mode, expected) in [
        (Some("short"), 0o600, format!("{unusable}token must have at least 16 characters")),
        (
            Some("a text with blanks in it"),
            0o600,
            format!("{unusable}token must have at least 16 characters"),
        ),
        (Some(TOKEN), 0o644, "error: token contains a secret and has mode 0644".to_owned()),
        (None, 0, format!("{unusable}cannot read token: No such file")),
    ] {
        let program = reachable_daemon(&db, "token = { file = 'token' }");
        let program = text.map_or(program.clone(), |text| with_token_file(program, text, mode));
        let ended = program.run("run").await.expect_code(78);
        assert!(ended.text().contains(&expected), "{}", ended.text());
        let doctor = program.run("doctor").await.expect_code(1).text();
        let finding = expected.trim_start_matches(unusable).trim_start_matches("error: ");
        assert!(doctor.contains(finding), "{doctor}");
        assert!(!doctor.contains(TOKEN) && !ended.text().contains(TOKEN), "{doctor}");
    }
}
