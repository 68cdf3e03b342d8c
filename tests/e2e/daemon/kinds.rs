//! The kinds that need no Rust, as an operator uses them.

use std::{fs, path::Path};

use billing_test_support::{Db, eventually, on_every_engine, process::Signal};

use super::{daemon, fetch, free_all_jobs};

const COMMAND: &str = r#"
[[job]]
name = "greet"
kind = "command"
schedule = { every = "365d" }
run-at-start = true
retry = { max-attempts = 1 }

[job.params]
argv = ["sh", "-c", "echo hello; echo \"$DATABASE_URL\" gone >&2; exit 3"]
"#;

async fn command_output_is_recorded_without_password(db: &Db) {
    let running = daemon(db, &[COMMAND]).start("run");
    running.wait_for_line("`sh` exited with code 3: gone").await;
    let details = "SELECT details FROM scheduler_runs WHERE job = 'greet' AND status = 'dead'";
    let details = eventually("it is recorded", async || {
        Some(fetch(db, details).await).filter(|details| details != "-")
    })
    .await;
    let details: serde_json::Value = serde_json::from_str(&details).expect("details are JSON");
    assert_eq!(details["stdout"], "hello\n", "{details}");
    assert_eq!(details["stderr"], " gone\n", "{details}");
    running.terminated().await.expect_code(0);
}

/// A program that runs when the daemon stops ends with it.
async fn command_ends_with_daemon(db: &Db) {
    let sleeper = COMMAND.replace("echo hello;", "echo $$ > pid; exec sleep 600;");
    let program = daemon(db, &[&sleeper]);
    let running = program.start("run");
    let file = program.folder().join("pid");
    let pid =
        eventually("it runs", async || std::fs::read_to_string(&file).ok().filter(|pid| pid.ends_with('\n')))
            .await;
    running.interrupted().await.expect_code(0);
    assert!(!std::path::Path::new("/proc").join(pid.trim()).exists(), "no zombie and no orphan");
    let runs = "SELECT count(*) || ' ' || max(status) FROM scheduler_runs";
    assert_eq!(fetch(db, runs).await, "1 interrupted");
}

/// Ignores every signal that a program can ignore, and starts another program that does so too.
const CLINGING: &str = r#"
[[job]]
name = "clinging"
kind = "command"
schedule = { every = "365d" }
run-at-start = true
timeout = "1h"

[job.params]
argv = ["sh", "-c", """
  if [ -e pid ]; then
    for pid in $(cat pid child); do
      if [ -e /proc/$pid ] && ! grep -q '^State:.Z' /proc/$pid/status; then echo $pid >> overlap; fi
    done
    echo done > again; exit
  fi
  trap 'echo stopped > stopped' TERM HUP INT
  (trap '' TERM HUP INT; exec sleep 600) & echo $! > child
  echo $$ > pid
  while :; do sleep 0.02; done"""]
stop-grace = "25s"
"#;

/// Killed at any time, also during a stop: its programs end before another daemon repeats the run.
#[tokio::test]
async fn killed_daemon_ends_its_programs() {
    for stops in [false, true] {
        let db = Db::sqlite().await;
        let program = daemon(&db, &[CLINGING]);
        let read = |name: &str| {
            fs::read_to_string(program.folder().join(name)).ok().filter(|text| text.ends_with('\n'))
        };
        let running = program.start("run");
        let pids = eventually("it runs", async || Some([read("child")?, read("pid")?])).await;
        assert!(pids.iter().all(|pid| is_running(pid.trim())));
        if stops {
            // The second signal requests the run to stop.
            running.signal(Signal::TERM);
            running.signal(Signal::INT);
            eventually("it was requested to stop", async || read("stopped")).await;
        }
        running.signal(Signal::KILL);
        running.ended().await;
        for pid in pids {
            eventually("it ends", async || (!is_running(pid.trim())).then_some(())).await;
        }
        free_all_jobs(&db).await;
        let running = program.start("run");
        eventually("it is repeated", async || read("again")).await;
        assert_eq!(read("overlap"), None, "the first run was over");
        running.terminated().await.expect_code(0);
    }
}

/// Whether a process runs, and is not a zombie.
fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
}

on_every_engine!(command_output_is_recorded_without_password, command_ends_with_daemon,);
