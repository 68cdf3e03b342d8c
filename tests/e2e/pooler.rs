//! Everything also works behind PgBouncer in transaction mode, where each transaction may have another server.

use billing_test_support::{Db, Login, Pooler, eventually};

use crate::daemon::{
    BILLING, HEARTBEAT, SHORT_LEASE, TICK, check_all_charged_once, fetch, program, seed,
    with_panel_billing_off,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooled_daemons_charge_each_hour_once() {
    let db = Db::g3_role().await;
    let organizations = seed(&db, 40).await;
    let pooler = Pooler::start(2);
    let url = pooler.url(&db, Login::Billing);
    let jobs = with_panel_billing_off(&db, &[SHORT_LEASE, BILLING, HEARTBEAT, TICK].concat());
    let daemons: Vec<_> =
        (0..3).map(|_| program().env("DATABASE_URL", &url).file("jobs.toml", &jobs).start("run")).collect();
    eventually("the fleet is billed, by one of the daemons", async || {
        let done =
            fetch(&db, "SELECT count(*) FROM scheduler_runs WHERE job = 'billing' AND status = 'done'").await;
        (done == "1").then_some(())
    })
    .await;
    eventually("each daemon beats and ticks continue", async || {
        let beating = "SELECT count(*) FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL";
        let ticks = "SELECT count(*) >= 3 FROM scheduler_runs WHERE job = 'tick' AND status = 'done'";
        (fetch(&db, beating).await == "3" && fetch(&db, ticks).await == "true").then_some(())
    })
    .await;
    for daemon in daemons {
        let ended = daemon.terminated().await.expect_code(0);
        assert!(!ended.text().contains("prepared statement"), "{}", ended.text());
        assert!(!ended.text().contains("[ERROR]"), "{}", ended.text());
    }
    check_all_charged_once(&db, &organizations).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_works_with_pooler() {
    let db = Db::postgres().await;
    let pooler = Pooler::start(1);
    let program = program().env("DATABASE_URL", &pooler.url(&db, Login::Owner));
    for command in ["migrate status", "migrate down --yes", "migrate up", "bill --dry-run", "bill", "audit"] {
        program.run(command).await.expect_code(0);
    }
    let demo = format!("demo --instances 100 --json --database-url {}", pooler.url(&db, Login::Owner));
    program.run(&demo).await.expect_code(0);
}
