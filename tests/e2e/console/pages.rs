//! What the pages show, and that commands print the same.

use billing_test_support::{Db, Fleet, Instance, Plan, eventually, on_every_engine};
use serde_json::{Value, json};
use uuid::Uuid;

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
        "schedule?text=30+2+*+*+*&zone=Europe/Berlin",
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
        let path = format!("/api/schedule?text=30+2+*+*+*&zone=Europe/Berlin&from={from}&job=heartbeat");
        let preview = vera.get(&path).await.json()["preview"].clone();
        assert_eq!(
            (&preview["times"][0]["scheduled_at"], &preview["times"][0]["clock"]),
            (&at.into(), &clock.into())
        );
        assert_eq!(preview["times"].as_array().map(Vec::len), Some(50));
        assert!(preview["lost"].as_array().is_some_and(|lost| lost.len() == 50), "{preview}");
    }
    let moved =
        vera.get("/api/schedule?text=every+365d,+5m+after&job=billing").await.json()["preview"].clone();
    let (first, lost) = (&moved["times"][0], moved["lost"].as_array().map(Vec::len));
    assert_eq!((&moved["in_force"], &first["added"], lost), (&json!("every 365d"), &json!(false), Some(0)));
    let minutes = |at: &Value| at.as_str().map(|at| at[11..16].to_owned());
    assert_eq!(
        [&first["moved_from"], &first["scheduled_at"]].map(minutes),
        ["00:00", "00:05"].map(|at| Some(at.to_owned()))
    );
    let page = vera.get("/console/schedule?text=daily+at+02:30,+14:00&job=heartbeat").await.body;
    assert!(page.contains("at 02:30 every day, UTC; at 14:00 every day, UTC"), "{page}");
    for (query, problem) in [
        ("text={+evry+%3D+'1h'+}", "did you mean `every`?"),
        ("text=every+x", "invalid duration `x`"),
        ("text=30+2", "field"),
        ("text=0+0+*+*+*&zone=Mars", "zone"),
        ("text=0+0+*+*+*&job=x", "no enabled job"),
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
    let explained =
        json(&site.program.run(&format!("charges explain {instance} --json")).await.expect_code(0));
    assert_eq!(explained["charge"]["adds_up"], true);
    assert_eq!(vera.get(&format!("/api/charges/{instance}")).await.json(), explained);
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
    let newest = &wallet["charges"][0];
    for key in ["amount", "hours", "period_start", "period_end", "currency"] {
        assert_eq!(newest[key], explained["charge"][key], "{key}");
    }
    assert_eq!(
        (wallet["charges"].as_array().map(Vec::len), &newest["instance"]),
        (Some(1), &json!(instance))
    );
    let page = vera.get(&format!("/console/wallets/{organization}")).await.body;
    let mut links = page.split("href=\"").filter_map(|link| link.split('"').next());
    let link = links.find(|link| link.contains("?at=")).expect("a link to the charge");
    let charge = vera.get(&link.replacen("..", "/api", 1)).await.json();
    assert_eq!(charge["charge"], explained["charge"], "{link}");
    assert_eq!(vera.get("/console/wallets/unknown").await.status, 404);
    let daemons = vera.get("/api/daemons").await.json();
    assert_eq!(daemons["daemons"][0]["liveness"], "alive");
}

/// Orders with the endpoint that has to acknowledge them, next to the number that every endpoint has acknowledged.
async fn wallet_shows_acknowledged_orders(db: &Db) {
    let organization = seed(db, 1).await[0];
    let site = Site::start(db, "read").await;
    let (id, other) = (Uuid::now_v7(), Uuid::now_v7());
    let (uuid, is) = match db.backend() {
        sea_orm::DbBackend::Sqlite => ("", ["1", "1000000"]),
        _ => ("::uuid", ["true", "to_timestamp(1)"]),
    };
    let [needed, at] = is;
    for sql in [
        format!(
            "INSERT INTO billing_events (id, type, organization_id, order_number, body, created_at)
             VALUES ('{id}'{uuid}, 'billing.suspend', '{organization}'{uuid}, 7, '{{}}', {at}),
                    ('{other}'{uuid}, 'billing.wallet.low', '{organization}'{uuid}, NULL, '{{}}', {at})"
        ),
        format!(
            "INSERT INTO billing_deliveries (event_id, endpoint, organization_id, needed, status, attempts, next_at, sent_at)
             VALUES ('{id}'{uuid}, 'crm', '{organization}'{uuid}, {needed}, 'sent', 1, {at}, {at}),
                    ('{id}'{uuid}, 'panel', '{organization}'{uuid}, {needed}, 'pending', 2, {at}, NULL)"
        ),
        format!(
            "INSERT INTO billing_standings (organization_id, state, since, watched, episode, order_number, desired, acked_order, acked_at,
                                            evaluated_at)
             VALUES ('{organization}'{uuid}, 'suspended', {at}, {needed}, 1, 7, 'suspended', 6, {at}, {at})"
        ),
    ] {
        db.execute(&sql).await;
    }
    let vera = site.of("vera");
    let wallet = vera.get(&format!("/api/wallets/{organization}")).await.json();
    assert_eq!(wallet["acknowledged"], json!({ "order": 6, "at": "1970-01-01T00:00:01Z" }));
    let orders = wallet["orders"].as_array().expect("orders");
    let shown: Vec<_> = orders.iter().map(|one| (&one["order"], &one["endpoint"], &one["sent_at"])).collect();
    let sent = json!("1970-01-01T00:00:01Z");
    let (seven, crm, panel) = (json!(7), json!("crm"), json!("panel"));
    assert_eq!(shown, [(&seven, &crm, &sent), (&seven, &panel, &Value::Null)]);
    let page = vera.get(&format!("/console/wallets/{organization}")).await.body;
    assert!(page.contains("Order 6 is acknowledged") && page.contains("not yet"), "{page}");
}

/// What an operator mistyped or truncated leads to what exists.
async fn unknown_names_lead_to_nearest(db: &Db) {
    let organization = seed(db, 1).await[0].to_string();
    db.execute("UPDATE organizations SET slug = 'acme-hosting'").await;
    let site = Site::start(db, "read").await;
    site.billed().await;
    let vera = site.of("vera");
    let run = vera.get("/api/runs?job=billing").await.json()[0]["id"].as_str().expect("an id").to_owned();
    let last = if run.ends_with('0') { '1' } else { '0' };
    let mistyped = format!("{}{last}", &run[..35]);
    let (wallet, run_page) = (format!("wallets/{organization}"), format!("runs/{run}"));
    for (path, name, page) in [
        ("jobs/biling", "billing", "jobs/billing"),
        ("wallets/acme-hostng", "acme-hosting", &wallet),
        ("wallets/acme", "acme-hosting", &wallet),
        ("wallets/Acme%20Hostin", "acme-hosting", &wallet),
        ("wallets?find=acme-hostign", "acme-hosting", &wallet),
        ("holds?reason=no_price&organization=acme-h", "acme-hosting", &wallet),
        ("events?organization=acme-hosting-", "acme-hosting", &wallet),
        (&format!("wallets/{}", &organization[..13]), &organization, &wallet),
        (&run_page[..38], &run, &run_page),
        (&format!("runs/{mistyped}"), &run, &run_page),
    ] {
        let answer = vera.get(&format!("/console/{path}")).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(
            answer.body.contains(&format!("did you mean <code>{name}</code>?")),
            "{path}: {}",
            answer.body
        );
        assert!(answer.body.contains(&format!("{page}\">Open")), "{path}: {}", answer.body);
    }
    for path in ["wallets/zebra", "wallets/ac", "runs/1", "runs/ffffffff-ffff-7fff-8fff-ffffffffffff"] {
        let answer = vera.get(&format!("/console/{path}")).await;
        assert!(answer.status == 404 && !answer.body.contains("did you mean"), "{path}: {}", answer.body);
        assert_eq!(answer.body.contains("the newest run is <code>"), path.starts_with("runs"), "{path}");
    }
    let error = vera.get("/api/wallets/acme").await.json();
    assert_eq!(error["error"], "there is no organization `acme`, did you mean `acme-hosting`?");
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
    wallet_shows_acknowledged_orders,
    unknown_names_lead_to_nearest,
);
