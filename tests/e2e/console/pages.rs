//! What the pages show, and that commands print the same.

use billing_test_support::{Db, Fleet, Instance, Plan, eventually, on_every_engine};
use serde_json::Value;

use super::Site;
use crate::{
    commands::json,
    daemon::{fetch, rows, seed},
};

async fn pages_show_what_commands_print(db: &Db) {
    seed(db, 2).await;
    let site = Site::start(db, "read").await;
    site.billed().await;
    let vera = site.of("vera");
    let runs = json(&site.program.run("runs list --json --job billing").await.expect_code(0));
    let page = vera.get("/api/jobs/billing").await.json();
    assert_eq!(page["runs"], runs);
    let id = runs[0]["id"].as_str().expect("an id");
    let run = vera.get(&format!("/api/runs/{id}")).await.json();
    let charged = "0.06";
    assert_eq!(run["run"]["totals"]["hours"], 6);
    assert_eq!(run["batches"].as_array().map(Vec::len), Some(2));
    let status = json(&site.program.run("status --json").await);
    let overview = eventually("the cached status has the run", async || {
        let overview = vera.get("/api/overview").await.json();
        (overview["status"]["last_run"]["id"] == id).then_some(overview)
    })
    .await;
    for key in ["last_run", "arrears", "holds", "panel", "schema"] {
        assert_eq!(overview["status"][key], status[key], "{key}");
    }
    let timeline = vera.get("/api/jobs/billing/timeline?runs=60").await.json();
    assert_eq!(timeline["runs"].as_array().map(Vec::len), Some(1));
    assert_eq!(timeline["runs"][0]["lateness_ms"], timeline["lateness"]["p99_ms"]);
    let html = vera.get(&format!("/console/runs/{id}")).await.body;
    assert!(html.contains(charged) && html.contains("done"), "{html}");
}

/// The headers and the markup agree with the policy for content: nothing inline, nothing from elsewhere.
async fn pages_contain_nothing_inline(db: &Db) {
    seed(db, 1).await;
    let site = Site::start(db, "operate").await;
    site.billed().await;
    let vera = site.of("vera");
    let runs = vera.get("/api/runs").await.json();
    let run = format!("/console/runs/{}", runs[0]["id"].as_str().expect("an id"));
    let mut links = Vec::new();
    let pages = [
        "",
        "jobs",
        "jobs/billing",
        "jobs/billing/timeline",
        "approvals",
        "holds",
        "wallets",
        "billing",
        "schedule?cron=30+2+*+*+*&zone=Europe/Berlin",
        "events",
        "daemons",
        "audit-log",
    ];
    for page in pages.map(|page| format!("/console/{page}")).into_iter().chain([run]) {
        let page = &*page;
        let answer = vera.get(page).await;
        assert_eq!(answer.status, 200, "{page}");
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{page}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{page}");
        for inline in
            [" style=", "<style", " onclick", " onload", " hx-", "javascript:", "href=\"http", "src=\"http"]
        {
            assert!(!answer.body.contains(inline), "{page}: {inline}");
        }
        // Every table cell has the heading that a small screen shows.
        assert_eq!(
            answer.body.matches("<td").count(),
            answer.body.matches("<td data-label=").count(),
            "{page}"
        );
        let asset = |text: &str| text.split('"').next().map(|name| format!("/console/assets/{name}"));
        links.extend(answer.body.split("assets/").skip(1).filter_map(asset));
        // The same page is not sent twice.
        let tag = answer.header("etag").expect("a tag").to_owned();
        let again = vera.clone().with("If-None-Match", &tag).get(page).await;
        assert!([200, 304].contains(&again.status), "{page}");
        assert_eq!(again.body.is_empty(), again.status == 304, "{page}");
    }
    links.sort_unstable();
    links.dedup();
    assert_eq!(links.len(), 3, "{links:?}");
    for link in links {
        let answer = site.client().get(&link).await;
        assert_eq!(answer.status, 200, "{link}");
        assert_eq!(answer.header("cache-control"), Some("public, max-age=31536000, immutable"));
    }
}

/// The figures of a run are the sums of its batches, and an expression is compared with a schedule in force.
async fn billing_and_schedule_show_jobs(db: &Db) {
    seed(db, 2).await;
    let site = Site::start(db, "read").await;
    site.billed().await;
    let vera = site.of("vera");
    let run = vera.get("/api/billing").await.json()["runs"][0].clone();
    let hours = fetch(db, "SELECT sum(hours) FROM billing_batches").await;
    assert_eq!(run["charged"]["hours"].to_string(), hours);
    assert_eq!((&run["charged"]["amounts"]["USD"], &run["adds_up"]), (&"0.06".into(), &true.into()));
    let page = vera.get("/console/billing").await.body;
    assert!(page.contains("0.010000 USD"), "the price of an hour: {page}");

    let upcoming = vera.get("/api/schedule").await.json()["upcoming"].clone();
    let jobs: Vec<_> = upcoming.as_array().expect("times").iter().map(|next| next["job"].clone()).collect();
    assert!(jobs.contains(&"billing".into()) && jobs.contains(&"heartbeat".into()), "{upcoming}");
    // At the end of March the clocks of Berlin skip 02:30, at the end of October they repeat it.
    for (from, at, clock) in [
        ("2027-03-27T12:00:00Z", "2027-03-28T01:00:00Z", "the first instant after the clock is changed"),
        ("2027-10-30T12:00:00Z", "2027-10-31T00:30:00Z", "a local time that occurs twice"),
    ] {
        let path = format!("/api/schedule?cron=30+2+*+*+*&zone=Europe/Berlin&from={from}&job=heartbeat");
        let preview = vera.get(&path).await.json()["preview"].clone();
        assert_eq!(
            (&preview["times"][0]["scheduled_at"], &preview["times"][0]["clock"]),
            (&at.into(), &clock.into())
        );
        assert_eq!(preview["times"].as_array().map(Vec::len), Some(50));
        assert!(preview["lost"].as_array().is_some_and(|lost| lost.len() == 50), "{preview}");
    }
    for (query, problem) in [
        ("cron=30+2", "field"),
        ("cron=0+0+*+*+*&zone=Mars", "zone"),
        ("cron=0+0+*+*+*&job=x", "no enabled job"),
    ] {
        let shown = vera.get(&format!("/api/schedule?{query}")).await.json();
        assert!(shown["problem"].as_str().is_some_and(|text| text.contains(problem)), "{query}: {shown}");
    }
}

async fn money_pages_equal_commands(db: &Db) {
    let organization = seed(db, 1).await[0];
    let site = Site::start(db, "read").await;
    site.billed().await;
    let vera = site.of("vera");
    let instance = rows(db, "CAST(id AS text) FROM vps_instances").await.remove(0);
    let command = json(&site.program.run(&format!("charges explain {instance} --json")).await.expect_code(0));
    assert_eq!(command["charge"]["adds_up"], true);
    assert_eq!(vera.get(&format!("/api/charges/{instance}")).await.json(), command);
    let page = vera.get(&format!("/console/charges/{instance}")).await.body;
    assert!(page.contains("3 h × 0.010000 per hour") && page.contains("adds up"), "{page}");
    assert_eq!(page.matches("applied to this charge").count(), 1, "{page}");
    assert_eq!(vera.get(&format!("/console/charges/{instance}?at=noon")).await.status, 400);
    assert_eq!(vera.get("/console/charges/unknown").await.status, 404);

    let printed =
        site.program.run(&format!("wallets --organization {organization} --json")).await.expect_code(0);
    let command: Value = serde_json::from_str(&printed.out.concat()).expect("an array");
    let wallet = vera.get(&format!("/api/wallets/{organization}")).await.json();
    for key in [
        "organization",
        "name",
        "balance",
        "currency",
        "owed",
        "burn_per_hour",
        "runway_hours",
        "state",
        "order",
    ] {
        assert_eq!(wallet[key], command[0][key], "{key}");
    }
    assert_eq!(wallet["instances"][0]["id"], *instance);
    assert_eq!(vera.get("/console/wallets/unknown").await.status, 404);
    let daemons = vera.get("/api/daemons").await.json();
    assert_eq!(daemons["daemons"][0]["liveness"], "alive");
}

/// An instance without a price is held; the page shows what resolves that, and the next page follows the last instance.
async fn holds_are_listed_by_reason(db: &Db) {
    let fleet = Fleet::new(db);
    let (organization, plan) = (fleet.wallet("100.00").await, fleet.plan(Plan::unpriced()).await);
    let created = crate::daemon::now(db).await - chrono::TimeDelta::hours(2);
    for number in 0..51 {
        let label = format!("web-{number}<i>");
        fleet.instance(Instance::new(organization, plan, created).label(&label)).await;
    }
    let site = Site::start(db, "read").await;
    site.billed().await;
    let vera = site.of("vera");
    let page = eventually("the cached status has the holds", async || {
        let page = vera.get("/console/holds?reason=no_price").await.body;
        page.contains("Next instances").then_some(page)
    })
    .await;
    assert!(page.contains("set the plan&#39;s price") || page.contains("set the plan's price"), "{page}");
    assert!(page.contains("&lt;i&gt;") && !page.contains("<i>"), "{page}");
    let first = vera.get("/api/holds?reason=no_price").await.json();
    assert_eq!(first["held"].as_array().map(Vec::len), Some(50));
    let next = vera.get(&format!("/api/holds?reason=no_price&after={}", first["next"])).await.json();
    assert_eq!((next["held"].as_array().map(Vec::len), &next["next"]), (Some(1), &Value::Null));
    assert_ne!(next["held"][0]["instance"], first["held"][49]["instance"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_failure_shows_last_status() {
    let db = Db::sqlite().await;
    seed(&db, 1).await;
    let site = Site::start(&db, "read").await;
    site.billed().await;
    let vera = site.of("vera");
    assert_eq!(vera.get("/console/").await.status, 200);
    let connection = db.connect().await;
    let renamed = "ALTER TABLE billing_standings RENAME TO hidden";
    sea_orm::ConnectionTrait::execute_unprepared(&connection, renamed).await.expect("it is renamed");
    let page = vera.get("/console/").await;
    assert_eq!(page.status, 503);
    assert!(page.body.contains("Last known status"), "{}", page.body);
    let error: Value = vera.get("/api/overview").await.json();
    assert_eq!(error["error"], "the database does not answer: see the log of the daemon");
}

on_every_engine!(
    billing_and_schedule_show_jobs,
    pages_show_what_commands_print,
    pages_contain_nothing_inline,
    money_pages_equal_commands,
    holds_are_listed_by_reason,
);
