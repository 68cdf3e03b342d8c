//! `run --log-file`: for a daemon whose standard streams have no reader, such as a service of Windows.

use std::{fs, path::Path};

use billing_test_support::{Db, eventually};
use serde_json::Value;

use super::{BILLING, HEARTBEAT, check_all_charged_once, daemon, program, seed};

/// Waits until the log has this text in it, and returns the log.
async fn log_with(file: &Path, text: &str) -> String {
    let read = async || fs::read_to_string(file).ok().filter(|log| log.contains(text));
    eventually(&format!("the log has `{text}`"), read).await
}

#[tokio::test]
async fn log_file_replaces_standard_streams() {
    for format in ["text", "json"] {
        let db = Db::sqlite().await;
        let organizations = seed(&db, 2).await;
        let daemon = daemon(&db, &[BILLING, HEARTBEAT]);
        let file = daemon.folder().join("billing-daemon.log");
        fs::write(&file, "{\"before\": true}\n").expect("our own folder");
        let running = daemon.start(&format!("run --log-format {format} --log-file billing-daemon.log"));
        log_with(&file, "job `billing` done").await;
        let ended = running.terminated().await.expect_code(0);
        assert_eq!((ended.out, ended.err), (Vec::new(), Vec::new()));
        let log = fs::read_to_string(&file).expect("text");
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines[0], "{\"before\": true}", "it is appended");
        if format == "json" {
            for line in &lines {
                serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            }
        }
        let stopped = if format == "json" { "\"message\":\"stopped\"" } else { "] [INFO] stopped" };
        assert!(lines.last().is_some_and(|line| line.contains(stopped)), "{log}");
        check_all_charged_once(&db, &organizations).await;
    }
}

/// A service manager shows an exit code at best.
#[tokio::test]
async fn start_errors_are_in_log_file() {
    let good = &[BILLING, HEARTBEAT].concat();
    let unknown = "[daemon]\nbanana = 1\nlog-level = 'loud'\n";
    for (jobs, url, code, message) in [
        (unknown, "sqlite://billing.db?mode=rwc", 78, ["banana", "unknown log level `loud`", "3 problems"]),
        (good, "", 78, ["DATABASE_URL is not set"; 3]),
        (good, "sqlite://billing.db?mode=rwc", 69, ["migrate up"; 3]),
    ] {
        for format in ["text", "json"] {
            let program = program().env("DATABASE_URL", url).file("jobs.toml", jobs);
            let arguments = format!("run --log-format {format} --log-file daemon.log");
            let ended = program.run(&arguments).await.expect_code(code);
            let log = fs::read_to_string(program.folder().join("daemon.log")).expect("it was begun");
            for part in message {
                assert!(log.contains(part), "{part} in\n{log}");
                assert!(ended.err.join("\n").contains(part), "{part} in\n{}", ended.text());
            }
            for line in log.lines() {
                if format == "json" {
                    let event: Value =
                        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                    assert_eq!(event["level"], "ERROR", "{line}");
                } else {
                    assert!(line.contains("Z] [ERROR] "), "{line}");
                }
            }
        }
    }
    let program = program().env("DATABASE_URL", "").file("jobs.toml", BILLING);
    let ended = program.run("run --log-file daemon.log").await.expect_code(78);
    let log = fs::read_to_string(program.folder().join("daemon.log")).expect("it was begun");
    let warning = ended.err[0].strip_prefix("warning: ").expect("there is one");
    assert!(log.contains(&format!("Z] [WARN] {warning}\n")), "{log}");
}

#[tokio::test]
async fn unwritable_log_file_is_reported_at_start() {
    // A full disk, and a folder that is missing.
    let full = if cfg!(target_os = "linux") { "/dev/full" } else { "missing/daemon.log" };
    for file in [full, "missing/daemon.log"] {
        let db = Db::sqlite().await;
        let organizations = seed(&db, 2).await;
        let running = daemon(&db, &[BILLING, HEARTBEAT]).start(&format!("run --log-file {file}"));
        running.wait_for_line("job `billing` done").await;
        let ended = running.terminated().await.expect_code(0);
        assert!(ended.out.is_empty(), "{}", ended.text());
        let message = format!("cannot write the log {file}: ");
        assert!(
            ended.err[0].starts_with(&message) && ended.err[1].contains("--log-file"),
            "{}",
            ended.text()
        );
        assert_eq!(ended.err.iter().filter(|line| line.contains(&message)).count(), 1, "{}", ended.text());
        assert!(ended.err.last().is_some_and(|line| line.ends_with("[INFO] stopped")), "{}", ended.text());
        check_all_charged_once(&db, &organizations).await;
    }
}
