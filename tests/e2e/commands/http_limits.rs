//! Clients of the HTTP interface that take what they can get do not disturb billing.

use std::{net::SocketAddr, time::Duration};

use billing_test_support::{Db, Program, Running, eventually, on_every_engine};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::http::{address, exchange, get};
use crate::daemon::{fetch, seed, with_panel_billing_off};

/// Only a failure takes that long.
const TIMEOUT: Duration = Duration::from_secs(30);
/// More connections than a process may open by default.
const HALF_OPEN: usize = 1_100;
const DEFAULT_LIMIT: &str = "ulimit -Sn 1024";
const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";
/// With the file of the last commit, which every run opens.
const STATE: &str = "[daemon]\nstate-dir = \".\"\n";
const BILLING: &str = "[[job]]\nname = 'billing'\nkind = 'billing'\nschedule = { every = '1s' }\n";

/// The daemon, which a shell starts after it has set its limits.
fn daemon_with_limit(db: &Db, limit: &str) -> Program {
    let script = format!("{limit}\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_e2e-daemon"));
    Program::new("/bin/sh")
        .env("DATABASE_URL", &db.url)
        .file("jobs.toml", &with_panel_billing_off(db, &[STATE, HTTP, BILLING].concat()))
        .file("daemon.sh", &script)
}

async fn successful_runs(db: &Db) -> u64 {
    let runs = "SELECT count(*) FROM scheduler_runs WHERE job = 'billing' AND status = 'done'";
    fetch(db, runs).await.parse().expect("a number")
}

async fn until_billed_again(db: &Db, times: u64) {
    let before = successful_runs(db).await;
    let enough = async || (successful_runs(db).await >= before + times).then_some(());
    eventually("billing runs several times", enough).await;
}

/// A connection from another address of this host.
async fn connect_from(peer: &str, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(peer.parse().expect("an address")).expect("every address of 127.0.0.0/8 is this host");
    socket.connect(address).await.expect("the daemon listens")
}

async fn half_open_requests_leave_billing_undisturbed(db: &Db) {
    // This process holds the other ends of the connections.
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = limits.maximum;
    setrlimit(Resource::Nofile, limits).expect("a process may raise its limit up to the hard one");
    seed(db, 2).await;
    let running = daemon_with_limit(db, DEFAULT_LIMIT).start("daemon.sh run");
    let address: SocketAddr = address(&running).await.parse().expect("an address");
    until_billed_again(db, 1).await;

    let mut half_open = Vec::new();
    for _ in 0..HALF_OPEN {
        let mut stream = TcpStream::connect(address).await.expect("the daemon listens");
        // The daemon may have closed it already.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localh").await;
        half_open.push(stream);
    }
    let stream = connect_from("127.0.0.2:0", address).await;
    let answer = timeout(TIMEOUT, exchange(stream, "GET /healthz", "localhost")).await;
    let answer = answer.expect("another client is answered");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(open_files(&running) < 192, "{} files are open", open_files(&running));
    until_billed_again(db, 4).await;
    running.wait_for_line("closed an HTTP connection of 127.0.0.1: at most 32 of one client").await;

    for mut stream in half_open {
        let mut rest = Vec::new();
        let closed = stream.read_to_end(&mut rest);
        // A closed connection ends with its end or with a reset.
        let _ = timeout(TIMEOUT, closed).await.expect("it is closed");
    }
    let answer = get(&address.to_string(), "/healthz").await;
    assert_eq!(answer.status, 200, "the header timeout has ended the half-open requests");
    let failed =
        "SELECT count(*) FROM scheduler_runs WHERE job = 'billing' AND (status <> 'done' OR attempt > 1)";
    assert_eq!(fetch(db, failed).await, "0");
    let ended = running.terminated().await.expect_code(0);
    assert!(!ended.text().contains("Too many open files"), "{}", ended.text());
}

on_every_engine!(half_open_requests_leave_billing_undisturbed);

/// The number of open files of the program.
fn open_files(running: &Running) -> usize {
    let folder = std::fs::read_dir(format!("/proc/{}/fd", running.pid()));
    folder.map_or(0, Iterator::count)
}

#[tokio::test]
async fn low_open_file_limit_is_raised() {
    let db = Db::sqlite().await;
    let warning = "this process may open only 100 files, and needs 256";
    for (limit, is_warned) in [("ulimit -Sn 100", false), ("ulimit -n 100", true)] {
        let program = daemon_with_limit(&db, limit);
        let running = program.start("daemon.sh run");
        assert_eq!(get(&address(&running).await, "/healthz").await.status, 200);
        assert_eq!(!running.lines_with(warning).is_empty(), is_warned, "{limit}");
        running.terminated().await.expect_code(0);
        let doctor = program.run("daemon.sh doctor").await.text();
        let finding = doctor.lines().find(|line| line.contains("open files: ")).expect("it is checked");
        assert_eq!(finding.contains("may open 100 files"), is_warned, "{finding}");
    }
}
