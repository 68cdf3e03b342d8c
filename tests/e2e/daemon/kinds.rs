//! The kinds that need no Rust, as an operator uses them.

use e2e::{Db, eventually, on_every_engine};

use super::{ask, daemon};

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

async fn a_command_leaves_its_output_in_the_history_and_sees_no_password(db: &Db) {
    let running = daemon(db, &[COMMAND]).start("run");
    running.says("`sh` exited with code 3: gone").await;
    let details = "SELECT details FROM billing_job_runs WHERE job = 'greet' AND status = 'dead'";
    let details =
        eventually("it is recorded", async || Some(ask(db, details).await).filter(|details| details != "-"))
            .await;
    let details: serde_json::Value = serde_json::from_str(&details).expect("details are JSON");
    assert_eq!(details["stdout"], "hello\n", "{details}");
    assert_eq!(details["stderr"], " gone\n", "{details}");
    running.terminated().await.expect_code(0);
}

/// A program that is running when the daemon is asked to end goes with it.
async fn a_command_ends_with_the_daemon(db: &Db) {
    let sleeper = COMMAND.replace("echo hello;", "echo $$ > pid; exec sleep 600;");
    let program = daemon(db, &[&sleeper]);
    let running = program.start("run");
    let file = program.folder().join("pid");
    let pid =
        eventually("it runs", async || std::fs::read_to_string(&file).ok().filter(|pid| pid.ends_with('\n')))
            .await;
    running.interrupted().await.expect_code(0);
    assert!(!std::path::Path::new("/proc").join(pid.trim()).exists(), "no zombie and no orphan");
    let runs = "SELECT count(*) || ' ' || max(status) FROM billing_job_runs";
    assert_eq!(ask(db, runs).await, "1 interrupted");
}

on_every_engine!(
    a_command_leaves_its_output_in_the_history_and_sees_no_password,
    a_command_ends_with_the_daemon,
);
