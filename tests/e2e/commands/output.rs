//! The format of the log, and output without a reader.

use std::process::Stdio;

use billing_test_support::{Db, Ended, Program, process::Signal};
use chrono::NaiveDateTime;
use serde_json::Value;

use crate::daemon::{BILLING, HEARTBEAT, daemon, program, seed};

/// A daemon that has something to say on every level: billing fails, and is not retried.
async fn eventful(db: &Db) -> Program {
    seed(db, 1).await;
    db.execute("REVOKE INSERT ON payment_transactions FROM billing_run").await;
    let once = BILLING.replace("max-attempts = 100", "max-attempts = 2");
    daemon(db, &[&once, HEARTBEAT]).env("LOG_LEVEL", "debug")
}

async fn run(program: &Program, arguments: &str) -> Ended {
    let running = program.start(arguments);
    running.wait_for_line("and is not retried").await;
    running.wait_for_line("`heartbeat` done").await;
    running.terminated().await.expect_code(0)
}

#[tokio::test]
async fn log_line_goes_to_stream_of_level() {
    let db = Db::g1_role().await;
    let ended = run(&eventful(&db).await, "run").await;
    for (lines, levels) in [(&ended.out, ["INFO", "DEBUG"]), (&ended.err, ["WARN", "ERROR"])] {
        for line in lines {
            let rest = line.strip_prefix('[').and_then(|line| line.split_once("Z] ["));
            let (time, rest) = rest.unwrap_or_else(|| panic!("no time: {line}"));
            let is_time = NaiveDateTime::parse_from_str(time, "%Y-%m-%dT%H:%M:%S%.3f").is_ok();
            assert!(is_time && time.len() == "2025-01-15T10:30:00.000".len(), "{line}");
            let (level, message) = rest.split_once("] ").unwrap_or_else(|| panic!("no level: {line}"));
            assert!(levels.contains(&level) && !message.is_empty(), "{line}");
        }
        for level in levels {
            assert!(
                lines.iter().any(|line| line.contains(&format!("] [{level}] "))),
                "no {level}: {}",
                ended.text()
            );
        }
    }
}

#[tokio::test]
async fn json_log_is_one_object_per_line() {
    let db = Db::g1_role().await;
    let ended = run(&eventful(&db).await, "run --log-format json").await;
    for (lines, levels) in [(&ended.out, ["INFO", "DEBUG"]), (&ended.err, ["WARN", "ERROR"])] {
        for line in lines {
            let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            for key in ["timestamp", "message", "target"] {
                assert!(event[key].as_str().is_some_and(|text| !text.is_empty()), "{line}");
            }
            assert!(levels.contains(&event["level"].as_str().unwrap_or_default()), "{line}");
        }
    }
    let failed = ended.err.iter().find(|line| line.contains("attempt 1 of 2")).expect("it failed once");
    let event: Value = serde_json::from_str(failed).expect("an object");
    assert_eq!((&event["job.name"], &event["attempt"]), (&Value::from("billing"), &Value::from(1)));
}

#[tokio::test]
async fn command_output_is_separate_from_log() {
    let db = Db::sqlite().await;
    seed(&db, 1).await;
    let program = program().env("DATABASE_URL", &db.url).env("LOG_LEVEL", "trace,sqlx=trace");
    for command in ["bill --json", "audit --json", "bill --json --log-format json"] {
        let ended = program.run(command).await.expect_code(0);
        assert_eq!(ended.out.len(), 1, "{command}: {}", ended.text());
        assert!(serde_json::from_str::<Value>(&ended.out[0]).is_ok(), "{}", ended.text());
        assert!(!ended.err.is_empty(), "{command} logs");
    }
}

#[tokio::test]
async fn closed_output_pipe_is_no_error() {
    let db = Db::sqlite().await;
    let program = daemon(&db, &[BILLING, HEARTBEAT]);
    for arguments in [
        "demo --instances 10",
        "demo --instances 10 --json",
        "bill",
        "audit",
        "check",
        "migrate status",
        "--help",
        "--version",
    ] {
        for deaf in [false, true] {
            let mut command = program.command(arguments);
            command.stdout(gone());
            if deaf {
                command.stderr(gone());
            }
            let child = command.spawn().expect("the program starts");
            let output = child.wait_with_output().await.expect("the program is waited for");
            let err = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{arguments}: {err}");
            assert!(!err.contains("panicked"), "{arguments}: {err}");
        }
    }
    // An error has its exit code even if it cannot be printed.
    for (command, code) in [("frobnicate", 64), ("check --config other.toml", 78)] {
        let status = program
            .command(command)
            .stdout(gone())
            .stderr(gone())
            .status()
            .await
            .expect("the program starts");
        assert_eq!(status.code(), Some(code), "{command}");
    }
}

#[tokio::test]
async fn daemon_continues_without_log_reader() {
    let db = Db::sqlite().await;
    seed(&db, 1).await;
    let program = daemon(&db, &[BILLING, HEARTBEAT]).env("LOG_LEVEL", "debug");
    let mut child = program.command("run").stdout(gone()).stderr(gone()).spawn().expect("the program starts");
    let beats =
        "SELECT count(*) FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL AND last_run_success";
    billing_test_support::eventually("it bills and beats", async || {
        (crate::daemon::fetch(&db, beats).await == "1").then_some(())
    })
    .await;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.expect("it is there"), Signal::TERM).expect("it is ours");
    assert_eq!(child.wait().await.expect("it is ours").code(), Some(0));
}

/// A pipe without a reader.
fn gone() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe is made");
    drop(reader);
    writer.into()
}
