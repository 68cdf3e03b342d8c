//! Figures that a page computes itself: how late a job was in a day, which prices raise a spike, the limit of an hour, and a dry run.

use billing_jobs::{
    billing::{CurrencyTotals, Excess, Spike, spike_guard::record_pending_spike},
    money::Money,
};
use billing_test_support::{Db, Fleet, Instance, on_every_engine};
use chrono::TimeDelta;
use sea_orm::DbBackend;
use serde_json::json;

use super::{Site, actions::dead_letter};
use crate::{
    commands::json,
    daemon::{fetch, now, seed},
};

async fn lateness_of_day_has_all_runs(db: &Db) {
    seed(db, 1).await;
    let site = Site::start(db, "read").await;
    site.billed().await;
    let now = now(db).await;
    // The first run of a daemon is later than all of these. More runs than are listed; then one of the day before, and a scheduled time without a run.
    let runs = (1..=199).map(|late| (late, 2, "done"));
    let rows = runs.chain([(1_000, 25, "done"), (500, 1, "paused")]).map(|(late, hours, status)| {
        let started = now - TimeDelta::hours(hours) + TimeDelta::seconds(late);
        let at = |at: chrono::DateTime<chrono::Utc>| match db.backend() {
            DbBackend::Sqlite => at.timestamp_micros().to_string(),
            _ => format!("'{}'", at.to_rfc3339()),
        };
        let (scheduled, started) = (at(started - TimeDelta::seconds(late)), at(started));
        let id = uuid::Uuid::now_v7();
        format!("('{id}', 'billing', {scheduled}, '{status}', 1, 'north', {started}, {started}, 0)")
    });
    let columns = "id, job, scheduled_at, status, fencing_token, daemon_id, started_at, finished_at, items";
    let rows = rows.collect::<Vec<_>>().join(", ");
    // The same scheduled time is done once.
    db.execute("DROP INDEX scheduler_runs_finished_once").await;
    db.execute(&format!("INSERT INTO scheduler_runs ({columns}) VALUES {rows}")).await;
    let timeline = site.of("vera").get("/api/jobs/billing/timeline").await.json();
    assert_eq!(timeline["lateness"]["runs"], 59, "without the paused one: {}", timeline["lateness"]);
    let of_day = &timeline["lateness_of_day"];
    let expected = [200, 100_000, 180_000, 198_000];
    assert_eq!(["runs", "p50_ms", "p90_ms", "p99_ms"].map(|key| of_day[key].as_i64()), expected.map(Some));
    let page = site.of("vera").get("/console/jobs/billing").await.body;
    assert!(page.contains("the last 24 hours") && page.contains("3m 18s"), "{page}");
}

async fn approvals_show_cause_of_spike(db: &Db) {
    let organization = seed(db, 2).await[0];
    let site = Site::start(db, "read").await;
    site.billed().await;
    let vera = site.of("vera");
    let waits = vera.get("/api/approvals").await.json();
    assert_eq!((&waits["raised"], &waits["disabled_endpoints"]), (&json!([]), &json!([])));

    db.execute("UPDATE vps_plans SET base_price = base_price * 10").await;
    dead_letter(db, organization).await;
    db.execute("UPDATE billing_deliveries SET last_code = 410").await;
    let due = CurrencyTotals { charges: 2, hours: 2, amount: Money(2_000) };
    let excess = Excess { currency: "USD".parse().expect("a code"), due, limit: Money(600) };
    let announced = record_pending_spike(db.admin(), "run 1", &Spike { excesses: vec![excess] }).await;
    announced.expect("it is announced");
    let waits = billing_test_support::eventually("the cached status has the endpoint", async || {
        let waits = vera.get("/api/approvals").await.json();
        (waits["disabled_endpoints"][0]["endpoint"] == "crm").then_some(waits)
    })
    .await;
    let raised = &waits["raised"][0];
    assert_eq!(
        [&raised["before"], &raised["now"], &raised["instances"]],
        [&json!("0.010000"), &json!("0.100000"), &json!(2)],
        "{waits}"
    );
    let page = vera.get("/console/approvals").await.body;
    assert!(page.contains("Prices that rose since the last run") && page.contains("0.100000"), "{page}");
    assert!(page.contains("Endpoints that receive nothing more"), "{page}");
}

async fn dry_run_predicts_charges(db: &Db) {
    let organization = seed(db, 1).await[0];
    let site = Site::start(db, "operate").await;
    site.billed().await;
    assert_eq!(site.of("vera").get("/console/billing/dry-run").await.status, 403);
    let olga = site.of("olga");
    // Three times the price of the run, with the factor of the spike guard.
    assert_eq!(olga.get("/api/billing").await.json()["limit_per_hour"], "0.030000 USD");
    assert_eq!(olga.get("/api/billing/dry-run").await.json(), json!({ "waits": false, "currencies": {} }));

    let plan = fetch(db, "SELECT CAST(id AS text) FROM vps_plans").await;
    let created = now(db).await - TimeDelta::minutes(150);
    Fleet::new(db).instance(Instance::new(organization, plan, created)).await;
    let due = olga.get("/api/billing/dry-run").await.json()["currencies"]["USD"].clone();
    let command = json(&site.program.run("bill --dry-run --json").await.expect_code(0));
    assert_eq!((&due["instances"], &due["hours"]), (&command["charged"], &command["hours"]), "{due}");
    assert_eq!((&due["hours"], &due["limit"]), (&json!(2), &json!("10.00")), "the floor of the spike guard");
    let page = olga.get("/console/billing/dry-run").await.body;
    assert!(page.contains("without an approval"), "{page}");
    assert_eq!(fetch(db, "SELECT count(*) FROM billing_charges").await, "1", "nothing was charged");
}

on_every_engine!(lateness_of_day_has_all_runs, approvals_show_cause_of_spike, dry_run_predicts_charges);
