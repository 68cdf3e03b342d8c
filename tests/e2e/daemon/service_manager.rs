//! The daemon's notifications to its service manager, over a socket like that of systemd.

use std::time::Duration;

use billing_test_support::{
    Db, Running, eventually,
    manager::{At, Manager},
    process::Signal,
};

use super::{BILLING, HANGS_FOREVER, HEARTBEAT, TICK, daemon, program, seed};

/// Blocks every worker thread until the process ends.
pub(super) const HANG: &str = r#"
[[job]]
name = "hang"
kind = "test.hang"
schedule = { every = "365d" }
"#;

async fn ready(manager: &mut Manager) {
    manager.wait_for("READY=1").await;
}

async fn check_life(at: At) {
    let db = Db::sqlite().await;
    seed(&db, 4).await;
    let mut manager = Manager::listen(at);
    let program = manager.manages(daemon(&db, &[BILLING, HEARTBEAT]));
    let running = program.start("run");
    ready(&mut manager).await;
    let charged = loop {
        let status = manager.wait_for("STATUS=").await;
        if status.contains("charged") {
            break status;
        }
    };
    assert!(charged.starts_with("2 jobs; billing at "), "{charged}");
    assert!(charged.ends_with(" UTC charged 0.12 USD for 12 hours of 4 instances, 0 held"), "{charged}");

    let program = program.file("jobs.toml", &[BILLING, HEARTBEAT, TICK].concat());
    running.signal(Signal::HUP);
    manager.wait_for("RELOADING=1").await;
    let usec: u64 = manager.wait_for("MONOTONIC_USEC=").await.parse().expect("a number of microseconds");
    assert!(usec > 0 && usec <= monotonic_usec(), "{usec}");
    ready(&mut manager).await;
    assert!(manager.wait_for("STATUS=").await.starts_with("3 jobs; billing at "));

    let _refused = program.file("jobs.toml", "nonsense");
    running.signal(Signal::HUP);
    manager.wait_for("RELOADING=1").await;
    ready(&mut manager).await;

    running.signal(Signal::TERM);
    manager.wait_for("STOPPING=1").await;
    let usec: u64 = manager.wait_for("EXTEND_TIMEOUT_USEC=").await.parse().expect("a number of microseconds");
    // The drain timeout, and the grace in which runs stop.
    assert!(usec > 90_000_000, "{usec}");
    assert_eq!(manager.wait_for("STATUS=").await, "stopping after SIGTERM: runs in progress continue");
    running.ended().await.expect_code(0);
}

#[tokio::test]
async fn path_socket_receives_all_notifications() {
    check_life(At::Path).await;
}

#[tokio::test]
async fn abstract_socket_receives_all_notifications() {
    check_life(At::Abstract).await;
}

fn monotonic_usec() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1_000).expect("it counts up from zero")
}

#[tokio::test]
async fn drain_extends_stop_time_and_feeds_watchdog() {
    let db = Db::sqlite().await;
    let mut manager = Manager::listen(At::Path);
    let program = manager.manages(daemon(&db, &["[daemon]\ndrain-timeout = \"90s\"\n", HANGS_FOREVER]));
    let running = program.env("WATCHDOG_USEC", "4000000").start("run");
    running.wait_for_line("hangs until the process ends").await;
    running.signal(Signal::TERM);
    manager.wait_for("STOPPING=1").await;
    let usec: u64 = manager.wait_for("EXTEND_TIMEOUT_USEC=").await.parse().expect("a number of microseconds");
    assert!(usec > 120_000_000, "{usec}");
    for _ in 0..2 {
        manager.wait_for("WATCHDOG=1").await;
    }
    running.signal(Signal::KILL);
}

/// A timer that fed the watchdog would continue.
#[tokio::test]
async fn hanging_scheduler_stops_watchdog_notifications() {
    let silence = Duration::from_secs(4);
    let db = Db::sqlite().await;
    let mut manager = Manager::listen(At::Path);
    let program = manager
        .manages(daemon(&db, &[TICK, HANG]))
        .env("WATCHDOG_USEC", &silence.as_micros().to_string())
        .env("TOKIO_WORKER_THREADS", "2");
    let mut running = program.start("run");
    ready(&mut manager).await;
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1").await;
    }
    make_it_hang(&db, &running).await;
    manager.starved(silence).await;
    assert!(running.is_alive(), "systemd would kill it now");
    running.signal(Signal::KILL);
}

pub(super) async fn make_it_hang(db: &Db, running: &Running) {
    let asker = program().env("DATABASE_URL", &db.url).file("jobs.toml", HANG);
    asker.run("jobs trigger hang").await.expect_code(0);
    running.wait_for_line("hangs from now on").await;
}

/// Without a watchdog nothing is fed, and a missing service manager is harmless.
#[tokio::test]
async fn missing_service_manager_is_logged_once() {
    let db = Db::sqlite().await;
    let mut manager = Manager::listen(At::Path);
    let program = manager.manages(daemon(&db, &[TICK])).env("WATCHDOG_USEC", "1000000");
    let running = program.start("run");
    ready(&mut manager).await;
    manager.wait_for("WATCHDOG=1").await;
    drop(manager);
    running.wait_for_line("cannot notify the service manager").await;
    eventually("it ticks on", async || (running.lines_with("tick of").len() > 5).then_some(())).await;
    let complaints = running.lines_with("cannot notify the service manager").len();
    running.terminated().await.expect_code(0);
    assert_eq!(complaints, 1);
}

#[tokio::test]
async fn waiting_start_extends_its_timeout() {
    let mut manager = Manager::listen(At::Path);
    let program = program().env("DATABASE_URL", "postgres://none@127.0.0.1:1/panel").file("jobs.toml", TICK);
    let running = manager.manages(program).start("run");
    manager.wait_for("EXTEND_TIMEOUT_USEC=").await;
    assert_eq!(manager.wait_for("STATUS=").await, "waiting for the database");
    running.wait_for_line("next attempt in").await;
    running.terminated().await.expect_code(0);
}
