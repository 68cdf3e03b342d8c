//! Billing that relies on the panel guard charges nothing without it, also when it is removed during a run.

use billing_jobs::{billing::BillingError, panel_guard};
use billing_test_support::{Db, Login, eventually, on_variants, panel_biller::Crash};
use sea_orm::{ConnectionTrait, TransactionTrait};

use super::{Daemon, assert_sound, install_guard as install, number, panel, seed};
use crate::daemon::{HEARTBEAT, fetch, program, rows, until_it_waits_for_a_lock};

/// Each instance in a separate batch, and again soon after a failure.
const BILLING: &str = r#"
[[job]]
name = "billing"
kind = "billing"
schedule = { every = "1h" }
run-at-start = true
retry = { max-attempts = 100, backoff = "1s", max-backoff = "1s" }
params = { batch-instances = 1, connections = 1 }
"#;

const REMOVE: &str =
    "DROP TRIGGER billing_panel_guard ON payment_transactions; DROP TRIGGER billing_panel_guard_balance ON wallets;
                      DROP FUNCTION billing_panel_guard(), billing_panel_guard_balance()";

/// Hours that were debited more than once: by us in the charge ledger, and by the panel in its cycles.
const TWICE: &str = "SELECT count(*) FROM (
    SELECT FROM vps_billing_cycles WHERE status = 'billed' GROUP BY vps_instance_id, billing_period_start HAVING count(*) > 1) t";

async fn guard_removed_under_a_daemon_stops_billing(db: &Db) {
    install(db).await;
    let instances = seed(db, 40, 1, 2).await.len();
    let lock = db.admin().begin().await.expect("it begins");
    let middle = "SELECT FROM wallets WHERE organization_id =
                      (SELECT organization_id FROM wallets ORDER BY organization_id OFFSET 20 LIMIT 1) FOR UPDATE";
    lock.execute_unprepared(middle).await.expect("a wallet is locked");
    let jobs = [BILLING, HEARTBEAT].concat();
    let daemon = program().env("DATABASE_URL", &db.url).file("jobs.toml", &jobs).start("run");
    until_it_waits_for_a_lock(db).await;

    // The batch that waits has found the panel guard, so the panel guard stays until that batch has ended.
    let owner = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    for taken in ["ALTER TABLE payment_transactions DISABLE TRIGGER billing_panel_guard", REMOVE] {
        let impatient = format!("SET LOCAL lock_timeout = '100ms'; {taken}");
        let txn = owner.begin().await.expect("it begins");
        let waited = txn.execute_unprepared(&impatient).await.expect_err("a batch holds a lock").to_string();
        assert!(waited.contains("lock timeout"), "{taken}: {waited}");
        txn.rollback().await.expect("it ends");
    }
    let removal = async { owner.execute_unprepared(REMOVE).await.expect("the owner may") };
    let release = async {
        eventually("the removal waits", async || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DROP TRIGGER%'";
            (number(db, waiting).await == 1).then_some(())
        })
        .await;
        lock.rollback().await.expect("it ends");
    };
    tokio::join!(removal, release);

    daemon.wait_for_line("the panel guard that billing relies on is missing").await;
    let charged = number(db, "SELECT count(*) FROM billing_charges").await;
    assert_eq!(charged, 21, "the batch that had begun is the last one");
    let pass = panel(db, &db.url_for(Login::Owner)).await.pass().await;
    assert_eq!((pass.billed, pass.failed), (instances - 21, vec![]), "what is left");
    assert_eq!(fetch(db, TWICE).await, "0");
    assert_eq!(number(db, "SELECT (sum(balance) * 100)::bigint FROM wallets").await, 40 * 10_000 - 40 * 2);

    // As after any failed run.
    daemon.wait_for_lines("no heartbeat: the last billing run failed: the panel guard", 2).await;
    let status = "status || ' ' || (error_message LIKE '%the panel guard%') FROM billing_daemon_status";
    assert_eq!(rows(db, status).await, ["error true"]);
    let status = program().env("DATABASE_URL", &db.url).file("jobs.toml", &jobs).run("status --json").await;
    let status: serde_json::Value = serde_json::from_str(&status.expect_code(1).out.concat()).expect("JSON");
    let kinds: Vec<_> =
        status["problems"].as_array().expect("a list").iter().map(|p| p["kind"].clone()).collect();
    assert!(kinds.contains(&"panel_guard".into()) && kinds.contains(&"billing_failed".into()), "{status}");
    let output =
        program().env("DATABASE_URL", &db.url).file("jobs.toml", &jobs).run("bill").await.expect_code(78);
    assert!(output.err[0].contains("guard install"), "{}", output.text());

    install(db).await;
    seed(db, 1, 1, 2).await;
    daemon.wait_for_line("job `billing` done").await;
    assert_eq!(fetch(db, TWICE).await, "0");
    daemon.terminated().await.expect_code(0);
}

on_variants!(guard_removed_under_a_daemon_stops_billing: g2_role, g3_role);

/// Every way in which it may be missing, with and without hours due.
async fn billing_without_guard_is_rejected(db: &Db) {
    let owner = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    for (case, taken) in [
        ("removed", REMOVE),
        ("disabled", "ALTER TABLE payment_transactions DISABLE TRIGGER billing_panel_guard"),
        ("for replicas", "ALTER TABLE payment_transactions ENABLE REPLICA TRIGGER billing_panel_guard"),
        ("half disabled", "ALTER TABLE wallets DISABLE TRIGGER ALL"),
        ("half removed", "DROP TRIGGER billing_panel_guard_balance ON wallets"),
        (
            "another function",
            "CREATE OR REPLACE FUNCTION billing_panel_guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        ),
    ] {
        install(db).await;
        let daemon = Daemon::relying_on_guard(db).await;
        daemon.bill().await.unwrap_or_else(|error| panic!("{case}: {error}"));
        db.execute(taken).await;
        for due in [0, 2] {
            seed(db, 1, 1, due).await;
            let refused = daemon.bill().await;
            assert!(matches!(refused, Err(BillingError::Unguarded)), "{case}: {refused:?}");
        }
        assert!(!panel_guard::status(&owner).await.expect("it is readable").effective, "{case}");
        daemon
            .run(billing_jobs::billing::Mode::DryRun)
            .await
            .unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(Daemon::of(db).await.bill().await.expect("it relies on nothing"), 2, "{case}");
    }
    assert_sound(db).await;
}

on_variants!(billing_without_guard_is_rejected: g1_role, g2_owner, g3_role);

#[tokio::test]
async fn guard_remove_is_refused_while_billing() {
    let db = Db::g3_role().await;
    install(&db).await;
    let owner = db.url_for(Login::Owner);
    let remove = async |arguments| program().env("DATABASE_URL", &owner).run(arguments).await;
    let daemon = Daemon::of(&db).await;
    let lease = daemon.claim().await;
    let output = remove("guard remove").await.expect_code(75);
    assert!(output.err[0].contains("stop every daemon first, or use `--force`"), "{}", output.text());
    daemon.let_go(&lease).await;
    db.execute(
        "INSERT INTO billing_daemon_status (daemon_instance_id, status, created_at, updated_at)
         VALUES ('alive-1', 'error', now(), now())",
    )
    .await;
    let output = remove("guard remove").await.expect_code(75);
    assert!(output.err[0].starts_with("error: alive-1 bills"), "{}", output.text());
    assert_eq!(remove("guard remove --force").await.expect_code(0).out, ["the panel guard is removed"]);
    install(&db).await;
    db.execute("UPDATE billing_daemon_status SET status = 'stopped'").await;
    assert_eq!(remove("guard remove").await.expect_code(0).out, ["the panel guard is removed"]);
    seed(&db, 1, 1, 2).await;
    let panel = panel(&db, &owner).await;
    let due = panel.due().await.remove(0);
    assert_eq!(panel.bill(&due, Crash::Never).await, billing_test_support::panel_biller::Outcome::Billed);
}
