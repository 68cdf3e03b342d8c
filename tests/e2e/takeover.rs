//! How long nobody holds a job: measured, and so for a quiet machine: `cargo test -p e2e --test e2e -- --ignored --nocapture takeover`.

use std::time::{Duration, Instant};

use e2e::{Db, eventually, process::Signal};

use crate::daemon::{TICK, ask, daemon};

const STUBBORN: &str = "[[job]]\nname = \"stubborn\"\nkind = \"test.stubborn\"\nschedule = { every = \"365d\" }\nrun-at-start = true\n";

/// From `kill -9` of the holder to the start of the same occurrence elsewhere.
async fn after_a_kill(db: &Db, lease: &str) -> Duration {
    let program = daemon(db, &[lease, STUBBORN]);
    let holder = program.start("run");
    holder.says("stubborn from now on").await;
    let other = program.start("run");
    other.says("runs stubborn as").await;
    // Half-way between two renewals, on average.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let killed = Instant::now();
    holder.signal(Signal::KILL);
    other.says("stubborn from now on").await;
    let took = killed.elapsed();
    other.signal(Signal::KILL);
    db.execute("DELETE FROM billing_job_state").await;
    took
}

/// From a signal to a daemon that holds nothing to the other's next tick.
async fn without_a_lease(db: &Db, signal: Signal) -> Duration {
    let program = daemon(db, &[TICK]);
    let (one, other) = (program.start("run"), program.start("run"));
    one.says("runs tick as").await;
    other.says("runs tick as").await;
    // Just after a tick there is most of a second until the next.
    let ticks = "SELECT count(*) FROM billing_job_runs WHERE job = 'tick'";
    let before = ask(db, ticks).await;
    eventually("it ticks", async || (ask(db, ticks).await != before).then_some(())).await;
    let free = "SELECT count(*) FROM billing_job_state WHERE job = 'tick' AND holder IS NULL";
    eventually("nobody holds it", async || (ask(db, free).await == "1").then_some(())).await;
    let seen = other.said("tick of").len();
    let begun = Instant::now();
    one.signal(signal);
    other.says_times("tick of", seen + 1).await;
    let took = begun.elapsed();
    other.signal(Signal::KILL);
    db.execute("DELETE FROM billing_job_state").await;
    took
}

async fn somebody_else_goes_on(db: &Db) {
    let mut figures = Vec::new();
    for (what, lease, at_most) in [
        ("kill -9 of a holder, lease of 10 s", "", 15.0),
        ("kill -9 of a holder, lease of 3 s", "[daemon]\nlease-ttl = \"3s\"\n", 5.0),
    ] {
        figures.push((what, after_a_kill(db, lease).await, at_most));
    }
    figures.push(("kill -9, nothing held", without_a_lease(db, Signal::KILL).await, 2.0));
    figures.push(("clean stop", without_a_lease(db, Signal::TERM).await, 2.0));
    for (what, took, at_most) in &figures {
        println!("{what}: {:.2} s (at most {at_most} s)", took.as_secs_f64());
    }
    assert!(figures.iter().all(|(_, took, at_most)| took.as_secs_f64() <= *at_most), "{figures:?}");
}

mod on_every_engine_measured {
    use super::somebody_else_goes_on;
    use e2e::Db;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "measures time: for a quiet machine"]
    async fn sqlite() {
        somebody_else_goes_on(&Db::sqlite().await).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "measures time: for a quiet machine"]
    async fn postgres() {
        somebody_else_goes_on(&Db::postgres().await).await;
    }
}
