//! A database whose clock jumps, in both directions.

use billing_test_support::{Db, Login, Panel, Postgres, eventually, process::Signal};

use crate::daemon::{BILLING, HOURS, check_all_charged_once, check_audit, daemon, fetch, seed};

const LEASE: &str = "[daemon]\nlease-ttl = \"3s\"\n";
const EVERY_SECOND: &str = r#"
[[job]]
name = "billing"
kind = "billing"
schedule = { every = "1s" }
run-at-start = true
"#;
const HOUR: i64 = 3_600;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_clock_changes_never_charge_early() {
    let server = Postgres::with_clock().await;
    let db = Db::on_server(server, Panel::G3, Login::Billing).await;
    let instances = i64::try_from(seed(&db, 3).await.len()).expect("a few");
    let daemon = daemon(&db, &[LEASE, EVERY_SECOND]).start("run");
    let mut latest = 0;
    for offset in [0, 2, 0, -26, 1, 4, 3, 5] {
        server.set_clock(offset * HOUR);
        two_more_runs(&db).await;
        latest = latest.max(offset);
        let charged = fetch(&db, "SELECT sum(hours) FROM billing_charges").await;
        let expected = instances * (HOURS + latest);
        assert_eq!(charged, expected.to_string(), "with the clock moved by {offset} h");
        let early = "SELECT count(*) FROM billing_charges c JOIN billing_batches b ON b.id = c.batch_id
                      WHERE c.period_start + c.hours * interval '1 hour' > b.as_of";
        assert_eq!(fetch(&db, early).await, "0", "hours to come are charged at {offset} h");
    }
    daemon.terminated().await.expect_code(0);
    check_audit(&db).await;
    server.take_away();
}

async fn two_more_runs(db: &Db) {
    let runs = "SELECT count(*) FROM scheduler_runs WHERE job = 'billing' AND status = 'done'";
    let before: u64 = fetch(db, runs).await.parse().expect("a count");
    let more = async || {
        let now: u64 = fetch(db, runs).await.parse().expect("a count");
        (now >= before + 2).then_some(())
    };
    eventually("two more runs are done", more).await;
}

/// The lease of a daemon that died then ends tomorrow by the database's clock, and no daemon waits for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_lease_after_clock_rollback_is_claimed() {
    let server = Postgres::with_clock().await;
    let db = Db::on_server(server, Panel::G3, Login::Billing).await;
    let organizations = seed(&db, 3).await;
    let program = daemon(&db, &[LEASE, BILLING]);
    let holder = program.clone().env("BILLING_LINGER_MS", "60000").start("run");
    let held = "SELECT count(*) FROM scheduler_jobs WHERE job = 'billing' AND holder IS NOT NULL";
    eventually("a daemon bills", async || (fetch(&db, held).await == "1").then_some(())).await;
    holder.signal(Signal::KILL);
    holder.ended().await;
    // Between the hours of the fleet: as much is due as before.
    server.set_clock(-600);
    let successor = program.start("run");
    successor.wait_for_line("job `billing` done").await;
    successor.terminated().await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
    server.take_away();
}

/// A lease that ends early by the database's clock is claimed by another daemon, and its old holder commits nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_jump_ends_lease_without_double_charges() {
    let server = Postgres::with_clock().await;
    let db = Db::on_server(server, Panel::G3, Login::Billing).await;
    let organizations = seed(&db, 4).await;
    let program = daemon(&db, &[LEASE, BILLING]);
    let slow = program.clone().env("BILLING_LINGER_MS", "1500").start("run");
    let charges = "SELECT count(*) FROM billing_charges";
    eventually("the first one is billed", async || (fetch(&db, charges).await != "0").then_some(())).await;
    server.set_clock(600);
    let quick = program.start("run");
    quick.wait_for_line("job `billing` done").await;
    slow.wait_for_line("another daemon").await;
    slow.terminated().await.expect_code(0);
    quick.terminated().await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
    let back = "SELECT count(*) FROM (SELECT fencing_token < lag(fencing_token) OVER (ORDER BY id) AS back FROM billing_batches) x WHERE back";
    assert_eq!(fetch(&db, back).await, "0", "fencing tokens never decrease in the order of commits");
    server.take_away();
}
