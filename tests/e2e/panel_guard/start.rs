//! What the daemon logs at its start about the panel that it found.

use billing_test_support::{Db, Login, Program, on_variants};

use super::{install_guard, seed};
use crate::daemon::{BILLING, HEARTBEAT, fetch, program};

fn with(db: &Db, jobs: &str) -> Program {
    program().env("DATABASE_URL", &db.url).file("jobs.toml", jobs)
}

/// The panels of these generations read no heartbeat.
async fn unguarded_panel_stops_billing(db: &Db) {
    seed(db, 1, 2, 2).await;
    let jobs = [BILLING, HEARTBEAT].concat();
    let generation = format!("{:?}", db.panel);
    for command in ["run", "bill", "bill --json"] {
        let output = with(db, &jobs).run(command).await.expect_code(78);
        assert!(output.out.is_empty() && output.err.len() == 1, "{command}: {}", output.text());
        for part in [generation.as_str(), "billing-daemon guard install", "`panel-billing = \"off\"`"] {
            assert!(output.err[0].contains(part), "{command}: {}", output.text());
        }
    }
    let nothing = "SELECT count(*) FROM scheduler_jobs";
    assert_eq!(fetch(db, nothing).await, "0", "nothing was begun");
    with(db, &jobs).run("bill --dry-run").await.expect_code(0);
    with(db, &jobs).run("audit").await.expect_code(0);
    with(db, &jobs).run("check").await.expect_code(0);

    // Its operator has switched the panel's billing off.
    let off = format!("[daemon]\npanel-billing = \"off\"\n{jobs}");
    let daemon = with(db, &off).start("run");
    daemon.wait_for_line(&format!("with a panel of generation {generation}; the panel guard is off")).await;
    daemon.wait_for_line("charged 0.04 USD for 4 hours of 2 instances, 0 held").await;
    daemon.terminated().await.expect_code(0);

    seed(db, 1, 2, 2).await;
    install_guard(db).await;
    let output = with(db, &jobs).run("bill").await.expect_code(0);
    let found = format!("with a panel of generation {generation}; the panel guard is on");
    assert_eq!(output.err, std::slice::from_ref(&found));
    let daemon = with(db, &jobs).start("run");
    daemon.wait_for_line(&found).await;
    daemon.terminated().await.expect_code(0);

    db.execute("ALTER TABLE payment_transactions DISABLE TRIGGER billing_panel_guard").await;
    with(db, &jobs).run("bill").await.expect_code(78);
}

on_variants!(
    unguarded_panel_stops_billing: g2_role, g3_role, g3_owner
);

#[tokio::test]
async fn heartbeat_reading_panel_needs_no_guard() {
    for (db, found) in [
        (Db::g1_role().await, "with a panel of generation G1; the panel guard is off"),
        (Db::postgres().await, "on tables of generation G3 without a panel"),
        (Db::sqlite().await, "on tables of generation G3 without a panel"),
    ] {
        let daemon = with(&db, BILLING).start("run");
        daemon.wait_for_line(found).await;
        daemon.terminated().await.expect_code(0);
    }
}

/// A database of the panel's in which our migration made what was missing, and one with a table of that name alone.
#[tokio::test]
async fn single_panel_table_counts_as_panel() {
    let db = Db::with_panel(billing_test_support::Panel::Empty, Login::Billing).await;
    with(&db, BILLING).run("bill").await.expect_code(0);
    for table in ["schema_migrations", "activity_logs"] {
        db.execute(&format!("CREATE TABLE {table} (id integer)")).await;
        with(&db, BILLING).run("bill").await.expect_code(78);
        db.execute(&format!("DROP TABLE {table}")).await;
    }
}
