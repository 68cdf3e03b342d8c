//! The statements of the pages over a large fleet: each finds its rows by an index.

use std::collections::HashSet;

use billing_test_support::{Db, eventually};
use uuid::Uuid;

use super::{Site, client::Client, section};
use crate::{
    daemon::{fetch, job, rows},
    query_plans::{Executed, Observed, rows as rows_of},
};

const INSTANCES: u32 = 6_000;
/// Every table that grows with the fleet or with time has more rows than this, and no page shows as many.
const MOST_ROWS: f64 = 1_000.0;
/// The id of nothing: such a page shows what is most like it.
const UNKNOWN: &str = "01999999-ffff-7fff-8fff-ffffffffffff";

/// For each of 1,200 organizations an event, some of them with little money, a third of the fleet held, and a history of 3,000 runs.
async fn seed(db: &Db) {
    db.seed_ledger(INSTANCES, 2).await;
    db.execute(
        "INSERT INTO scheduler_runs (id, job, scheduled_at, status, attempt, fencing_token, daemon_id, started_at, finished_at, items)
         SELECT gen_random_uuid(), CASE WHEN n % 4 = 0 OR n > 1000 THEN 'billing' ELSE 'audit' END, at, 'done', 1, n, 'north', at, at, 5
           FROM (SELECT n, now() - n * interval '4 minutes' AS at FROM generate_series(10, 3000) AS n) AS runs;
         INSERT INTO billing_standings
             (organization_id, state, since, watched, episode, level, burn, owed, runway_hours, order_number, desired, evaluated_at)
         SELECT id, 'low', now(), number % 5 = 0, 1, 72, 1000000, 0, number % 200, 0, 'running', now()
           FROM (SELECT id, row_number() OVER () AS number FROM organizations) AS numbered;
         INSERT INTO billing_holds (instance_id, organization_id, label, reason, hours_due, opened_at, seen_at)
         SELECT id, organization_id, label, CASE WHEN number % 60 = 0 THEN 'catch_up_limit' ELSE 'insufficient_balance' END, 3, now(), now()
           FROM (SELECT *, row_number() OVER () AS number FROM vps_instances) AS fleet WHERE number % 3 = 0;
         INSERT INTO billing_events (id, type, organization_id, body, created_at)
         SELECT gen_random_uuid(), 'billing.wallet.low', id, '{}', now() FROM organizations;
         INSERT INTO billing_deliveries (event_id, endpoint, organization_id, needed, status, attempts, next_at, sent_at)
         SELECT id, 'crm', organization_id, true, 'sent', 1, now(), now() FROM billing_events",
    )
    .await;
    db.execute("ANALYZE").await;
}

/// Requests these pages; returns what the server executed meanwhile, with the page.
async fn statements(observed: &Observed, client: &Client<'_>, pages: &[String]) -> Vec<(String, Executed)> {
    let mut seen = 0;
    observed.executed(&mut seen).await;
    let mut all = Vec::new();
    for page in pages {
        let answer = client.get(page).await;
        let expected = if page.ends_with(UNKNOWN) { 404 } else { 200 };
        assert_eq!(answer.status, expected, "{page}: {}", answer.body);
        all.extend(observed.executed(&mut seen).await.into_iter().map(|executed| (page.clone(), executed)));
    }
    all
}

/// A statement without its limits and its numbers.
fn shape(text: &str) -> String {
    let statement = text.rsplit("ms'; ").next().unwrap_or_default();
    statement.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// The statements of the status. They read all holds and standings, in one process once in two seconds, whatever pages are requested.
async fn shapes_of_status(observed: &Observed, site: &Site) -> HashSet<String> {
    let mut seen = 0;
    observed.executed(&mut seen).await;
    site.program.run("status --json").await;
    observed.executed(&mut seen).await.into_iter().map(|executed| shape(&executed.text)).collect()
}

/// Requests for each page, and for those with a filter.
async fn requests(db: &Db) -> Vec<String> {
    let mut subjects = Vec::new();
    for table in ["organizations", "vps_instances", "scheduler_runs", "billing_events"] {
        let one = format!("CAST(id AS text) FROM {table} ORDER BY 1 LIMIT 1 OFFSET 700");
        subjects.push(rows(db, &one).await.remove(0));
    }
    let [organization, instance, run, event] = &subjects[..] else { panic!("four subjects") };
    let start = format!(
        "to_char(max(period_start) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM billing_charges
          WHERE instance_id = '{instance}'"
    );
    let start = rows(db, &start).await.remove(0);
    let of_path = |path: &str| {
        let path = path.replace("{name}", "billing").replace("{instance}", instance);
        let id = if path.starts_with("/runs") { run } else { event };
        path.replace("{organization}", organization).replace("{id}", id)
    };
    // A dry run reads what is due of the whole fleet, as a run does.
    let is_bounded = |path: &&str| *path != "/billing/dry-run";
    let pages = billing_daemon::console_pages().into_iter().map(|(path, _)| path).filter(is_bounded);
    let filtered = [
        "/holds?reason=insufficient_balance&after=900".to_owned(),
        format!("/holds?reason=insufficient_balance&organization={organization}"),
        format!("/wallets?below=150&runway=100&after={organization}"),
        "/schedule?text=30+2+*+*+*&job=billing".to_owned(),
        format!("/charges/{instance}?at={start}"),
        format!("/wallets/{UNKNOWN}"),
        format!("/runs/{UNKNOWN}"),
        "/events?status=dead".to_owned(),
        "/events?status=cancelled".to_owned(),
        format!("/events?organization={organization}"),
        "/audit-log?action=pause".to_owned(),
    ];
    pages.map(of_path).chain(filtered).map(|path| format!("/console{path}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_scan_no_large_table() {
    let Some(observed) = Observed::start().await else { return };
    let db = &observed.db;
    seed(db).await;
    observed.observe().await;
    // A table is then read from end to end only if no index finds the rows, as in a fleet that is a thousand times as large.
    let name = fetch(db, "SELECT current_database()").await;
    for setting in ["enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_material"] {
        db.execute(&format!("ALTER DATABASE {name} SET {setting} = off")).await;
    }
    // Billing is not due yet: a run would close the holds.
    let billing = job("billing", "billing", "1h", "not-before = 2100-01-01T00:00:00Z");
    let heartbeat = job("heartbeat", "heartbeat", "1h", "scope = 'node'\nrun-at-start = true");
    let site = Site::of_sections(db, &[&section("operate", ""), &billing, &heartbeat]).await;
    let olga = site.of("olga");
    eventually("the heartbeat is recorded", async || {
        (fetch(db, "SELECT count(*) FROM scheduler_runs WHERE job = 'heartbeat'").await == "1").then_some(())
    })
    .await;
    let status = shapes_of_status(&observed, &site).await;
    let requests = requests(db).await;
    let mut checked = HashSet::new();
    for (page, Executed { text, plan }) in statements(&observed, &olga, &requests).await {
        if !status.contains(&shape(&text)) {
            let read = rows_of(&plan);
            assert!(read <= MOST_ROWS, "{page} reads {read} rows: {text}\n{plan:#}");
            checked.insert(page);
        }
    }
    // The other two show the status and the configuration.
    let reads = |page: &&String| !page.contains("/schedule") && !page.ends_with("/daemons");
    let unchecked: Vec<_> = requests.iter().filter(reads).filter(|page| !checked.contains(*page)).collect();
    assert_eq!(unchecked, [""; 0], "pages without a statement");

    // The time before all others of the job.
    let form = format!("request={}&reason=x&scheduled_at=2020-01-01T00:00:00Z", Uuid::now_v7());
    let mut seen = 0;
    observed.executed(&mut seen).await;
    let answer = olga.post("/console/jobs/billing/replay", &form).await;
    assert_eq!(answer.status, 422, "{}", answer.body);
    let replay = observed.executed(&mut seen).await;
    assert!(replay.iter().any(|executed| executed.text.contains("scheduled_from <=")), "the history is read");
    for Executed { text, plan } in replay.iter().filter(|executed| !status.contains(&shape(&executed.text))) {
        assert!(rows_of(plan) <= MOST_ROWS, "a replay reads {} rows: {text}\n{plan:#}", rows_of(plan));
    }

    db.execute("DROP INDEX billing_events_by_organization").await;
    let page = requests.iter().find(|page| page.contains("/events?organization=")).expect("a page").clone();
    let scanned = statements(&observed, &olga, &[page]).await;
    assert!(scanned.iter().any(|(_, executed)| rows_of(&executed.plan) > MOST_ROWS), "a scan is found");
}
