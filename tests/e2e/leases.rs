//! Who holds a job, when its holder blocks, and when it dies.

use billing_test_support::{Db, eventually, on_every_engine};
use rustix::process::Signal;

use crate::daemon::{daemon, fetch};

/// The shortest lease there is.
const LEASE: &str = "[daemon]\nlease-ttl = \"3s\"\n";

fn once(kind: &str) -> String {
    format!(
        "[[job]]\nname = \"{kind}\"\nkind = \"test.{kind}\"\nschedule = {{ every = \"365d\" }}\nrun-at-start = true\n"
    )
}

/// Leases are renewed from a thread that no job can block.
async fn a_plugin_that_blocks_every_thread_does_not_lose_its_lease(db: &Db) {
    let program = daemon(db, &[LEASE, &once("block")]);
    let blocking = program.start("run");
    blocking.wait_for_line("blocks every thread").await;
    let other = program.start("run");
    other.wait_for_line("runs block as").await;
    let runs = "SELECT count(*) || ' ' || coalesce(max(status), '') FROM scheduler_runs WHERE job = 'block'";
    eventually("the run is over", async || (fetch(db, runs).await == "1 done").then_some(())).await;
    assert!(other.lines_with("blocks every thread").is_empty(), "nobody took the job over");
    blocking.terminated().await.expect_code(0);
    other.terminated().await.expect_code(0);
}

/// A holder that is gone is replaced when its lease has run out; the occurrence begins anew.
async fn a_job_whose_holder_was_killed_is_taken_over(db: &Db) {
    let program = daemon(db, &[LEASE, &once("hangs-forever")]);
    let first = program.start("run");
    first.wait_for_line("hangs until the process ends").await;
    let second = program.start("run");
    second.wait_for_line("runs hangs-forever as").await;
    assert!(second.lines_with("hangs until the process ends").is_empty(), "one holder at a time");
    first.signal(Signal::KILL);
    second.wait_for_line("hangs until the process ends").await;
    second.signal(Signal::KILL);
}

on_every_engine!(
    a_plugin_that_blocks_every_thread_does_not_lose_its_lease,
    a_job_whose_holder_was_killed_is_taken_over,
);
