//! A daemon that is suspended in a batch for longer than its lease, and resumes when another one has billed.

use billing_test_support::{Db, Ended, Fleet, Instance, eventually, on_every_engine, process::Signal};
use chrono::TimeDelta;
use sea_orm::DbBackend;
use uuid::Uuid;

use crate::daemon::{
    BILLING, HOURS, check_all_charged_once, check_audit, daemon, fetch, now, program, rows, seed,
    until_it_waits_for_a_lock, with_panel_billing_off,
};

const LEASE: &str = "[daemon]\nlease-ttl = \"3s\"\n";
const FENCED: &str = "a batch was rolled back: fenced";

/// The state after the suspended daemon has resumed.
struct Woken {
    organizations: Vec<Uuid>,
    /// Charges of instances that were made when the successor had ended its run.
    late_charges: String,
    ended: Ended,
}

/// Suspends a daemon in a batch, without some of its safeguards; resumes it when its successor has billed everything and
/// every customer has one instance more, for which only the suspended daemon would charge.
async fn suspend_during_takeover(db: &Db, mutation: &str) -> Woken {
    let organizations = seed(db, 4).await;
    let program = daemon(db, &[LEASE, BILLING]).env("LOG_LEVEL", "debug");
    // Waits in each batch, so that there is time to suspend it.
    let sleeper =
        program.clone().env("BILLING_LINGER_MS", "400").env("BILLING_MUTATION", mutation).start("run");
    let charges = "SELECT count(*) FROM billing_charges";
    eventually("the first one is billed", async || (fetch(db, charges).await != "0").then_some(())).await;

    // On SQLite the suspended daemon then waits before its transaction, since no other process could write after that; on PostgreSQL in
    // the middle of one, which the server ends.
    let obstacle = db.begin().await.expect("a transaction begins");
    let lock = "UPDATE wallets SET currency = currency";
    sea_orm::ConnectionTrait::execute_unprepared(&obstacle, lock)
        .await
        .expect("wallets are locked only briefly");
    if db.backend() == DbBackend::Postgres {
        until_it_waits_for_a_lock(db).await;
    }
    sleeper.signal(Signal::STOP);
    obstacle.rollback().await.expect("nothing was changed");

    let successor = program.start("run");
    successor.wait_for_line("job `billing` done").await;
    check_all_charged_once(db, &organizations).await;
    let fleet = Fleet::new(db);
    // A plan that the suspended daemon knows: it has read the prices already.
    let plan: Uuid = fetch(db, "SELECT id FROM vps_plans").await.parse().expect("an id is a UUID");
    let created = now(db).await - TimeDelta::minutes(HOURS * 60 + 30);
    for organization in &organizations {
        fleet.instance(Instance::new(*organization, plan, created)).await;
    }
    sleeper.signal(Signal::CONT);
    // Without fencing, its run may be recorded before it learns who holds the job.
    let ends = ["another daemon", "job `billing` interrupted"];
    eventually("its run has ended", async || {
        ends.iter().any(|line| !sleeper.lines_with(line).is_empty()).then_some(())
    })
    .await;
    let late_charges = format!("SELECT count(*) - {} FROM billing_charges", organizations.len());
    let late_charges = fetch(db, &late_charges).await;
    successor.terminated().await.expect_code(0);
    Woken { organizations, late_charges, ended: sleeper.terminated().await.expect_code(0) }
}

async fn suspended_daemon_commits_nothing_after_lease(db: &Db) {
    let woken = suspend_during_takeover(db, "").await;
    assert_eq!(woken.late_charges, "0", "{}", woken.ended.text());
    assert!(woken.ended.text().contains(FENCED), "{}", woken.ended.text());
    let runs = "count(*) || '' FROM scheduler_runs WHERE job = 'billing' AND fencing_token = 1";
    assert_eq!(rows(db, runs).await, ["0"], "nothing is recorded after the loss: {}", woken.ended.text());
    check_two_instances_charged_once(db, &woken).await;
}

async fn suspended_daemon_without_fencing_commits(db: &Db) {
    let woken = suspend_during_takeover(db, "no-fencing-check").await;
    assert_ne!(woken.late_charges, "0", "{}", woken.ended.text());
    // The ledger holds without the panel guard: nothing is charged again.
    check_two_instances_charged_once(db, &woken).await;
}

/// Bills what is left, after which each instance of every customer is charged once.
async fn check_two_instances_charged_once(db: &Db, woken: &Woken) {
    program()
        .env("DATABASE_URL", &db.url)
        .file("jobs.toml", &with_panel_billing_off(db, BILLING))
        .run("bill")
        .await
        .expect_code(0);
    let charged = "count(*) || ' ' || count(DISTINCT instance_id) || ' ' || sum(hours) FROM billing_charges";
    let instances = 2 * woken.organizations.len();
    assert_eq!(rows(db, charged).await, [format!("{instances} {instances} {}", 3 * instances)]);
    check_audit(db).await;
}

async fn suspended_daemon_without_fencing_records_run(db: &Db) {
    suspend_during_takeover(db, "record-unfenced").await;
    let runs = "count(*) || '' FROM scheduler_runs WHERE job = 'billing'";
    assert_ne!(rows(db, runs).await, ["1"]);
}

on_every_engine!(
    suspended_daemon_commits_nothing_after_lease,
    suspended_daemon_without_fencing_commits,
    suspended_daemon_without_fencing_records_run,
);
