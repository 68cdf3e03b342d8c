//! `healthcheck`: healthy while the scheduler makes progress, whether or not the database answers.

use std::{fs::File, time::SystemTime};

use billing_test_support::{Db, Program, eventually, process::Signal};

use super::{
    BILLING, TICK, daemon, program,
    service_manager::{HANG, make_it_hang},
};

/// The program with a liveness file in its folder.
fn with_liveness_file(program: Program) -> Program {
    let file = program.folder().join("alive").display().to_string();
    program.env("BILLING_LIVENESS_FILE", &file)
}

async fn until_exit(program: &Program, arguments: &str, code: i32) -> Vec<String> {
    eventually(&format!("{arguments} exits with {code}"), async || {
        let ended = program.run(arguments).await;
        (ended.code == Some(code)).then(|| [ended.out, ended.err].concat())
    })
    .await
}

#[tokio::test]
async fn healthcheck_fails_before_start_and_after_stop() {
    let db = Db::sqlite().await;
    let program = with_liveness_file(daemon(&db, &[BILLING]));
    let absent = program.run("healthcheck").await.expect_code(1);
    assert!(absent.err[0].starts_with("error: no daemon runs here: "), "{absent:?}");
    let running = program.start("run");
    let printed = until_exit(&program, "healthcheck", 0).await;
    assert!(printed[0].starts_with("alive: the scheduler made progress "), "{printed:?}");
    running.wait_for_line("job `billing` done").await;
    // A reload with mistakes changes nothing for the probe, which reads no configuration.
    let program = program.file("jobs.toml", "nonsense");
    running.wait_for_line("everything stays as it was").await;
    program.run("healthcheck").await.expect_code(0);
    running.terminated().await.expect_code(0);
    program.run("healthcheck").await.expect_code(1);
}

/// A task of the runtime that renewed the file on a timer would continue.
#[tokio::test]
async fn hanging_scheduler_is_unhealthy() {
    let db = Db::sqlite().await;
    let program = with_liveness_file(daemon(&db, &[TICK, HANG])).env("TOKIO_WORKER_THREADS", "2");
    let mut running = program.start("run");
    until_exit(&program, "healthcheck --max-age 3s", 0).await;
    make_it_hang(&db, &running).await;
    let printed = until_exit(&program, "healthcheck --max-age 3s", 1).await;
    assert!(printed[0].starts_with("error: the daemon hangs: "), "{printed:?}");
    assert!(running.is_alive(), "an orchestrator would restart it now");
    // Within the default a daemon may be busy.
    program.run("healthcheck").await.expect_code(0);
    running.signal(Signal::KILL);
}

/// An orchestrator that restarted it would not bring the database back.
#[tokio::test]
async fn unreachable_database_is_healthy() {
    let program = program().env("DATABASE_URL", "postgres://none@127.0.0.1:1/panel").file("jobs.toml", TICK);
    let program = with_liveness_file(program);
    let running = program.start("run");
    running.wait_for_line("next attempt in").await;
    program.run("healthcheck").await.expect_code(0);
    // Older than a healthy daemon's file: the waiting daemon renews it.
    let file = File::options().write(true).open(program.folder().join("alive")).expect("the daemon's file");
    file.set_modified(SystemTime::UNIX_EPOCH).expect("a file of this user");
    program.run("healthcheck").await.expect_code(1);
    until_exit(&program, "healthcheck", 0).await;
    running.terminated().await.expect_code(0);
}

#[tokio::test]
async fn unusable_liveness_file_does_not_stop_billing() {
    let db = Db::sqlite().await;
    let program = daemon(&db, &[BILLING]).env("BILLING_LIVENESS_FILE", "/proc/none/alive");
    let running = program.start("run");
    running.wait_for_line("cannot create /proc/none/alive, which BILLING_LIVENESS_FILE names").await;
    running.wait_for_line("job `billing` done").await;
    program.run("healthcheck").await.expect_code(1);
    running.terminated().await.expect_code(0);
    let unset = daemon(&db, &[BILLING]).run("healthcheck").await.expect_code(78);
    assert_eq!(unset.err[0], "error: BILLING_LIVENESS_FILE is not set");
}
