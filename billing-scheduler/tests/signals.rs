//! The first signal lets the runs in progress continue, and the second one requests them to stop at once.
#![cfg(target_os = "linux")]

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use billing_scheduler::{ManualClock, NewJob, RunOnceError, Scheduler, chrono::DateTime, every};
use rustix::process::{Pid, Signal, kill_process};

/// The environment variable that makes the test below the program.
const PROGRAM: &str = "SHUTDOWN_PROGRAM";
/// Only a failed test takes so long.
const TIMEOUT: Duration = Duration::from_mins(2);

struct Program {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Program {
    fn start() -> Self {
        let mut child = Command::new(env::current_exe().expect("the path of this program is known"))
            .args(["program", "--exact", "--ignored", "--nocapture"])
            .env(PROGRAM, "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts again");
        let stdout: BufReader<ChildStdout> = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// Waits for a line, and returns the lines before it.
    fn read_until(&self, expected: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            match self.lines.recv_timeout(TIMEOUT) {
                Ok(line) if line == expected => return before,
                Ok(line) => before.push(line),
                Err(error) => panic!("no line `{expected}` after {before:?}: {error}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("it is a process id");
        kill_process(pid, signal).expect("the program runs");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It fails if the program has ended, as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn second_signal_stops_runs_immediately() {
    let mut program = Program::start();
    program.read_until("started");
    program.signal(Signal::TERM);
    program.read_until("draining");
    program.signal(Signal::INT);
    assert_eq!(program.read_until("stopped: the daemon is shutting down"), [""; 0]);
    program.read_until("ended: DrainReport { abandoned: 0 }");
    assert!(program.child.wait().expect("it is a child").success());
}

/// Not a test: the program of the test above. Its clock does not move, so no limit of the shutdown ever ends the run.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the program of another test"]
async fn program() {
    if env::var_os(PROGRAM).is_none() {
        return;
    }
    let runs = NewJob::new("runs", every("1h"), |ctx| async move {
        println!("started");
        println!("stopped: {}", ctx.stopped().await);
    });
    let scheduler = Scheduler::builder()
        .clock(ManualClock::at(DateTime::UNIX_EPOCH))
        .with_job(runs.configure(|spec| spec.run_at_start = true))
        .job("other", every("1h"), |_| async {})
        .start()
        .expect("the jobs are valid");
    let handle = Scheduler::clone(&scheduler);
    tokio::spawn(async move {
        while !matches!(handle.run_once("other", None).await, Err(RunOnceError::ShuttingDown)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("draining");
    });
    println!("ended: {:?}", scheduler.shutdown_on_signal().await.expect("the signals are received"));
}
