//! Settings of a role or a database that change what a session does: billing works with them.

use billing_store::{Database, Pool, begin, query_one};
use billing_test_support::{BILLING_ROLE, Db, eventually, on_variants};
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};

use crate::daemon::{
    BILLING, HEARTBEAT, check_all_charged_once, daemon, fetch, job, seed, until_it_waits_for_a_lock,
    with_panel_billing_off,
};

async fn set(db: &Db, settings: &[&str]) {
    let name = fetch(db, "SELECT current_database()").await;
    for setting in settings {
        db.execute(&format!("ALTER ROLE {BILLING_ROLE} IN DATABASE {name} SET {setting}")).await;
    }
}

async fn strict_transactions_do_not_change_billing(db: &Db) {
    let organizations = seed(db, 3).await;
    set(
        db,
        &[
            "default_transaction_isolation = serializable",
            "default_transaction_deferrable = on",
            "standard_conforming_strings = off",
            "DateStyle = 'SQL, DMY'",
            "IntervalStyle = sql_standard",
            "bytea_output = escape",
            "extra_float_digits = -10",
            "search_path = public",
        ],
    )
    .await;
    let database = Database::new(db.url.parse().expect("a URL"));
    let opened = Box::pin(database.connect(Pool::Single)).await.expect("it opens");
    let sql = "SELECT current_setting('transaction_isolation') || ', ' || current_setting('standard_conforming_strings')";
    let alone = query_one(&opened, Statement::from_string(DbBackend::Postgres, sql)).await;
    let txn = begin(&opened).await.expect("it begins");
    let in_transaction = txn.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await;
    for row in [alone, in_transaction] {
        let row = row.expect("the database answers").expect("a row");
        assert_eq!(row.try_get_by_index::<String>(0).expect("text"), "read committed, on");
    }
    txn.rollback().await.expect("it ends");

    let program = daemon(db, &[BILLING, HEARTBEAT]);
    program.run("doctor").await.expect_code(0);
    let daemon = program.start("run");
    daemon.wait_for_line("job `billing` done").await;
    daemon.terminated().await.expect_code(0);
    check_all_charged_once(db, &organizations).await;
    let reason = r"it's a \' backslash \\";
    let paused = program.command("jobs pause billing").arg("--reason").arg(reason).output().await;
    assert!(paused.expect("it starts").status.success());
    assert_eq!(fetch(db, "SELECT reason FROM scheduler_pauses").await, reason);
}

/// A statement waits longer for a lock than the limits of its role permit.
async fn limits_of_role_are_replaced(db: &Db) {
    let organizations = seed(db, 1).await;
    set(
        db,
        &[
            "statement_timeout = '400ms'",
            "lock_timeout = '300ms'",
            "idle_in_transaction_session_timeout = '200ms'",
        ],
    )
    .await;
    let panel = db.begin().await.expect("a transaction begins");
    panel.execute_unprepared("SELECT * FROM wallets FOR UPDATE").await.expect("the wallets are locked");
    let daemon = daemon(db, &[BILLING, HEARTBEAT]).start("run");
    until_it_waits_for_a_lock(db).await;
    let long = "SELECT count(*) > 0 FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock'
                   AND clock_timestamp() - query_start > interval '1 second'";
    eventually("it waits for longer", async || (fetch(db, long).await == "true").then_some(())).await;
    panel.rollback().await.expect("the locks are released");
    daemon.wait_for_line("job `billing` done").await;
    daemon.terminated().await.expect_code(0);
    check_all_charged_once(db, &organizations).await;
}

/// The server ends each session that is idle for longer.
async fn idle_sessions_are_opened_again(db: &Db) {
    let organizations = seed(db, 3).await;
    set(db, &["idle_session_timeout = '300ms'"]).await;
    let jobs =
        with_panel_billing_off(db, &[job("billing", "billing", "1s", ""), HEARTBEAT.to_owned()].concat());
    let daemon = daemon(db, &[]).file("jobs.toml", &jobs).start("run");
    eventually("billing runs several times", async || {
        let runs = "SELECT count(*) >= 4 FROM scheduler_runs WHERE job = 'billing' AND status = 'done'";
        (fetch(db, runs).await == "true").then_some(())
    })
    .await;
    let ended = daemon.terminated().await.expect_code(0);
    for level in ["[WARN]", "[ERROR]"] {
        assert!(!ended.text().contains(level), "{}", ended.text());
    }
    check_all_charged_once(db, &organizations).await;
}

on_variants!(strict_transactions_do_not_change_billing: g1_role, g3_role);
on_variants!(limits_of_role_are_replaced: g3_role);
on_variants!(idle_sessions_are_opened_again: g1_role);
