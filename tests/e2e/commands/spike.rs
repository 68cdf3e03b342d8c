//! A run that waits for an approval, as the commands and the panel see it.

use billing_test_support::{Db, Fleet, Instance, Plan, Program, eventually, on_variants};

use crate::daemon::{daemon, fetch, now, seed};

const JOBS: &str = "
[[job]]
name = \"billing\"
kind = \"billing\"
schedule = { every = \"1s\" }
run-at-start = true

[job.params]
spike-floor = \"0.01\"

[[job]]
name = \"heartbeat\"
kind = \"heartbeat\"
schedule = { every = \"1s\" }
scope = \"node\"
run-at-start = true
";

/// A fleet of two instances that was billed, and then an instance with two hours due at 10.00 each.
async fn billed_before_spike(db: &Db) -> Program {
    let program = daemon(db, &[JOBS]);
    seed(db, 2).await;
    program.run("bill").await.expect_code(0);
    let fleet = Fleet::new(db);
    let (plan, org) = (fleet.plan(Plan::monthly("7300.00")).await, fleet.wallet("1000.00").await);
    let created = now(db).await - chrono::TimeDelta::minutes(150);
    fleet.instance(Instance::new(org, plan, created)).await;
    program
}

async fn spike_approval_covers_seen_amount(db: &Db) {
    let program = billed_before_spike(db).await;
    let charges = "SELECT count(*) FROM billing_charges";
    let before = fetch(db, charges).await;

    // The panel would charge the same: it keeps waiting, and the status row has the reason.
    db.execute("UPDATE scheduler_fencing SET last_success_at = NULL").await;
    let running = program.start("run");
    running.wait_for_line("then run `billing-daemon bill --approve 20.00 USD`").await;
    eventually("the heartbeat continues, with the reason", async || {
        let waiting = fetch(
            db,
            "SELECT count(*) FROM billing_daemon_status
              WHERE status = 'error' AND heartbeat_at IS NOT NULL AND error_message LIKE '%--approve 20.00%'",
        )
        .await;
        (waiting == "1").then_some(())
    })
    .await;
    assert_eq!(
        fetch(db, "SELECT count(*) FROM scheduler_fencing WHERE last_success_at IS NOT NULL").await,
        "1"
    );
    let status = program.run("status --json").await.expect_code(1);
    let status: serde_json::Value = serde_json::from_str(&status.out[0]).expect("JSON");
    let problems = status["problems"].as_array().expect("a list");
    assert!(problems.iter().any(|problem| problem["kind"] == "spike"), "{problems:?}");
    running.terminated().await.expect_code(0);
    assert_eq!(fetch(db, charges).await, before);

    let refused = program.run("bill").await.expect_code(1);
    assert!(refused.text().contains("nothing was charged"), "{}", refused.text());
    let dry = program.run("bill --dry-run").await.expect_code(1);
    assert!(dry.text().contains("--approve 20.00 USD`"), "{}", dry.text());
    let dry = program.run("bill --dry-run --json").await.expect_code(1);
    let dry: serde_json::Value = serde_json::from_str(&dry.out[0]).expect("JSON");
    let waits = &dry["waits_for_approval"]["USD"];
    assert_eq!((&waits["amount"], &waits["hours"]), (&"20.00".into(), &2.into()), "{dry}");
    let refused = program.run("bill --approve 19.00").await.expect_code(64);
    assert!(
        refused.text().contains("20.00 USD for 2 hours waits for an approval, not 19.00"),
        "{}",
        refused.text()
    );
    assert_eq!(fetch(db, charges).await, before);
    let refused = program.run("bill --approve 20.00 EUR").await.expect_code(64);
    assert!(refused.text().contains("then use `--approve 20.00 USD`"), "{}", refused.text());
    let done = program.run("bill --approve 20.00").await.expect_code(0);
    assert!(done.out[0].starts_with("charged 20.00 USD for 2 hours of 1 instance;"), "{}", done.text());
    let refused = program.run("bill --approve 20.00").await.expect_code(64);
    assert!(refused.text().contains("no run waits for an approval"), "{}", refused.text());
    program.run("audit").await.expect_code(0);
}

/// An amount that only a dry run printed can be approved.
async fn dry_run_amount_can_be_approved(db: &Db) {
    let program = billed_before_spike(db).await;
    let dry = program.run("bill --dry-run").await.expect_code(1);
    assert!(dry.text().contains("--approve 20.00 USD`"), "{}", dry.text());
    program.run("bill --approve 19.00").await.expect_code(64);
    program.run("bill --approve 20.00").await.expect_code(0);
    let approvals = "SELECT count(*) FROM scheduler_audit_log WHERE action = 'approve a spike'";
    assert_eq!(fetch(db, approvals).await, "1");
}

on_variants!(spike_approval_covers_seen_amount: sqlite, g1_role);
on_variants!(dry_run_amount_can_be_approved: sqlite, g1_role);
