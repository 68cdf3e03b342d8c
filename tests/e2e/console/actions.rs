//! Actions: who may send them, and that each leaves exactly one entry in the audit log.

use billing_test_support::{Db, eventually, on_every_engine};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sea_orm::DbBackend;
use serde_json::Value;
use uuid::Uuid;

use super::{PERSONS, Site};
use crate::daemon::{rows, seed};

pub(super) const ENTRIES: &str =
    "actor || ' ' || action || ' ' || job || ' ' || coalesce(reason, '-') FROM scheduler_audit_log
     WHERE actor IN ('vera', 'olga', 'anna') ORDER BY id";

fn form(fields: &[(&str, &str)]) -> String {
    let pairs =
        fields.iter().map(|(key, value)| format!("{key}={}", value.replace(' ', "+").replace(':', "%3A")));
    pairs.collect::<Vec<_>>().join("&")
}

fn request() -> String {
    Uuid::now_v7().to_string()
}

async fn paused(db: &Db) -> Vec<String> {
    rows(db, "job FROM scheduler_pauses WHERE resumed_at IS NULL").await
}

/// Every action, for everyone, in each mode of access: only a person with the right comes as far as the form.
async fn actions_need_right_and_access(db: &Db) {
    seed(db, 1).await;
    for access in ["read", "operate"] {
        let site = Site::start(db, access).await;
        for (path, right) in billing_daemon::console_actions() {
            let path =
                path.replace("{name}", "billing").replace("{organization}", "none").replace("{id}", "none");
            let path = format!("/console{path}");
            assert_eq!(site.client().post(&path, "").await.status, 401, "{access}: {path} by no one");
            // Another origin is refused before the sender is identified.
            for client in [site.client(), site.of("olga"), site.of("anna")] {
                let foreign = client.with("Sec-Fetch-Site", "cross-site");
                assert_eq!(foreign.send(&format!("POST {path}"), "").await.status, 403, "{access}: {path}");
            }
            assert_eq!(site.of("olga").get(&path).await.status, 405, "{path}");
            for (name, rights) in PERSONS {
                let answer = site.of(name).post(&path, "").await;
                let has_right = rights.split(',').any(|of| of == right);
                let expected = if has_right && access == "operate" { 422 } else { 403 };
                assert_eq!(answer.status, expected, "{access}: {path} by {name}");
                if !has_right {
                    assert!(answer.body.contains(right), "the answer names the right: {}", answer.body);
                }
            }
        }
        // A bearer token is no ambient credential.
        let bearer = site.of("olga").send("POST /console/jobs/billing/pause", "").await.status;
        assert_eq!(bearer, if access == "operate" { 422 } else { 403 });
    }
    assert_eq!(rows(db, ENTRIES).await, [""; 0]);
}

async fn action_is_recorded_once(db: &Db) {
    seed(db, 1).await;
    let site = Site::start(db, "operate").await;
    site.billed().await;
    let olga = site.of("olga");
    let json = olga.clone().with("Accept", "application/json");
    let pause = form(&[("request", &request()), ("reason", "price list")]);
    let answer = olga.post("/console/jobs/billing/pause", &pause).await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (303, Some("../../jobs/billing")),
        "{}",
        answer.body
    );
    // The page shows it at once, although the status is cached.
    let page = olga.get("/console/jobs/billing").await.body;
    assert!(page.contains("paused by olga: price list"), "{page}");
    let twice = olga.post("/console/jobs/billing/pause", &pause).await;
    assert_eq!(twice.status, 200);
    assert!(twice.body.contains("Nothing had to be done"), "{}", twice.body);
    let other = form(&[("request", &request()), ("reason", "again")]);
    assert_eq!(json.post("/console/jobs/billing/pause", &other).await.json()["accepted"], false);
    assert_eq!(olga.post("/console/jobs/billing/trigger", &other).await.status, 409, "it is paused");
    let resume = form(&[("request", &request()), ("reason", "done")]);
    assert_eq!(json.post("/console/jobs/billing/resume", &resume).await.json()["accepted"], true);
    // The first form again, late: it must not pause the job again.
    assert_eq!(olga.post("/console/jobs/billing/pause", &pause).await.status, 200);
    assert_eq!(paused(db).await, [""; 0]);

    let id = request();
    let trigger = form(&[("request", &id), ("reason", "now")]);
    let (one, other) = tokio::join!(
        json.post("/console/jobs/billing/trigger", &trigger),
        json.post("/console/jobs/billing/trigger", &trigger)
    );
    let accepted = [one, other].iter().filter(|answer| answer.json()["accepted"] == true).count();
    assert_eq!(accepted, 1, "a double click");
    let run = eventually("the run is recorded", async || {
        let runs = olga.get("/api/jobs/billing").await.json()["runs"].clone();
        runs.as_array()?.iter().find(|run| run["request_id"] == *id).cloned()
    })
    .await;
    assert_eq!(run["reason"], "requested by olga: now");
    let entries = ["olga pause billing price list", "olga resume billing done", "olga run_now billing now"];
    assert_eq!(rows(db, ENTRIES).await, entries);

    let log = site.of("olga").get("/api/audit-log?actor=olga").await.json();
    assert_eq!((log["entries"].as_array().map(Vec::len), &log["broken"]), (Some(3), &Value::Null));
    // Without the right, only the newest entry.
    let newest = site.of("vera").get("/api/audit-log?before=2").await.json();
    assert_eq!(
        (newest["entries"].as_array().map(Vec::len), &newest["only_newest"]),
        (Some(1), &Value::Bool(true))
    );
}

async fn invalid_form_changes_nothing(db: &Db) {
    let organization = seed(db, 1).await[0].to_string();
    let site = Site::start(db, "operate").await;
    site.billed().await;
    let olga = site.of("olga");
    let (id, long) = (request(), "x".repeat(501));
    let done = eventually("the run is recorded", async || {
        let runs = olga.get("/api/runs?job=billing").await.json();
        runs[0]["scheduled_at"].as_str().map(str::to_owned)
    })
    .await;
    for (path, fields, status) in [
        ("pause", vec![("request", &*id)], 422),
        ("pause", vec![("request", &id), ("reason", " ")], 422),
        ("pause", vec![("request", &id), ("reason", &long)], 422),
        ("pause", vec![("request", "1"), ("reason", "x")], 422),
        ("cancel", vec![("request", &id), ("reason", "x")], 422),
        ("cancel", vec![("request", &id), ("reason", "x"), ("fencing_token", "4711")], 409),
        ("replay", vec![("request", &id), ("reason", "x"), ("scheduled_at", "2020-01-01T00:00:00Z")], 422),
        ("replay", vec![("request", &id), ("reason", "x"), ("scheduled_at", &done)], 409),
        ("resume", vec![("request", &id), ("reason", "x")], 200),
    ] {
        let answer = olga.post(&format!("/console/jobs/billing/{path}"), &form(&fields)).await;
        assert_eq!(answer.status, status, "{path} {fields:?}: {}", answer.body);
        if status == 422 {
            assert!(answer.body.contains("<button>Send again</button>"), "{path} {fields:?}");
        }
    }
    let hostile =
        olga.post("/console/jobs/billing/pause", &form(&[("request", "\"><script>"), ("reason", "x")])).await;
    assert!(hostile.status == 422 && !hostile.body.contains("<script>"), "{}", hostile.body);
    assert_eq!(
        olga.post("/console/jobs/biling/pause", &form(&[("request", &id), ("reason", "x")])).await.status,
        404
    );
    let large = format!("reason={}", "x".repeat(5_000));
    assert_eq!(olga.post("/console/jobs/billing/pause", &large).await.status, 413);
    let anna = site.of("anna");
    let amount =
        [("request", &*id), ("reason", "x"), ("announced", "1"), ("currency", "USD"), ("amount", "1.00")];
    assert_eq!(anna.post("/console/approvals/spike", &form(&amount)).await.status, 409);
    let hours = [
        ("request", &*id),
        ("reason", "x"),
        ("organization", &*organization),
        ("instances", "1"),
        ("hours", "9"),
    ];
    assert_eq!(anna.post("/console/approvals/catch-up", &form(&hours)).await.status, 409);
    assert_eq!((rows(db, ENTRIES).await, paused(db).await), (Vec::new(), Vec::new()));
}

/// An event with one delivery that was given up.
pub(super) async fn dead_letter(db: &Db, organization: Uuid) -> String {
    let event = request();
    let (uuid, now) = match db.backend() {
        DbBackend::Sqlite => ("", "1000000"),
        _ => ("::uuid", "now()"),
    };
    let needed = if db.backend() == DbBackend::Sqlite { "1" } else { "true" };
    for sql in [
        format!(
            "INSERT INTO billing_events (id, type, organization_id, body, created_at)
             VALUES ('{event}'{uuid}, 'billing.wallet.low', '{organization}'{uuid}, '{{\"type\":\"<b>\"}}', {now})"
        ),
        format!(
            "INSERT INTO billing_deliveries (event_id, endpoint, organization_id, needed, status, attempts, next_at, last_error)
             VALUES ('{event}'{uuid}, 'crm', '{organization}'{uuid}, {needed}, 'dead', 12, {now}, 'refused <i>')"
        ),
    ] {
        db.execute(&sql).await;
    }
    event
}

const DELIVERIES: &str = "status || ' ' || CAST(attempts AS text) FROM billing_deliveries ORDER BY status";

async fn deliveries_are_changed_once(db: &Db) {
    let organization = seed(db, 1).await[0];
    let site = Site::start(db, "operate").await;
    let event = dead_letter(db, organization).await;
    let olga = site.of("olga");
    let page = olga.get(&format!("/console/events/{event}")).await.body;
    assert!(page.contains("refused &lt;i&gt;") && page.contains("Send again"), "{page}");
    assert!(!page.contains("Give up") && !page.contains("<b>\""), "nothing is pending: {page}");
    let listed = olga.get(&format!("/api/events?status=dead&organization={organization}")).await.json();
    assert_eq!((&listed["dead"], &listed["pending"]), (&1.into(), &0.into()));
    let command = site.program.run("events list --status dead --json").await.expect_code(0);
    assert_eq!(listed["deliveries"], serde_json::from_str::<Value>(&command.out.concat()).expect("an array"));
    assert_eq!(olga.get("/console/events?status=lost").await.status, 400);

    let again = form(&[("request", &request()), ("reason", "their server is back")]);
    let path = format!("/console/events/{event}/redeliver");
    assert_eq!(olga.post(&path, &again).await.status, 303);
    assert_eq!(olga.post(&path, &again).await.status, 200, "a double click");
    assert_eq!(rows(db, DELIVERIES).await, ["pending 0"]);
    let cancel = form(&[("request", &request()), ("reason", "too old")]);
    assert_eq!(olga.post(&format!("/console/events/{event}/cancel"), &cancel).await.status, 303);
    assert_eq!(rows(db, DELIVERIES).await, ["cancelled 0"]);
    // The first form again, late.
    assert_eq!(olga.post(&path, &again).await.status, 200);
    assert_eq!(rows(db, DELIVERIES).await, ["cancelled 0"]);
    let entries = ["olga redeliver deliver their server is back", "olga cancel delivery deliver too old"];
    assert_eq!(rows(db, ENTRIES).await, entries);
    let unknown = format!("/console/events/{}/redeliver", Uuid::now_v7());
    assert_eq!(olga.post(&unknown, &cancel).await.status, 404);
}

async fn policy_needs_its_own_login(db: &Db) {
    let organization = seed(db, 1).await[0];
    let path = format!("/console/wallets/{organization}/policy");
    let fields = |id, limit| {
        form(&[
            ("request", id),
            ("reason", "internal"),
            ("mode", "exempt"),
            ("credit_limit", limit),
            ("never_suspend_until", "2030-01-01T00:00:00Z"),
            ("contact", ""),
        ])
    };
    let id = request();
    if db.backend() != DbBackend::Sqlite {
        let site = Site::start(db, "operate").await;
        let shown = site.of("anna").get(&format!("/console/wallets/{organization}")).await.body;
        assert!(shown.contains("billing-daemon policy set"), "the command is shown: {shown}");
        assert_eq!(site.of("anna").post(&path, &fields(&id, "25.00")).await.status, 403);
    }
    let site = Site::with(db, "operate", "adjust-database-url = { env = 'ADJUST_URL' }").await;
    let anna = site.of("anna");
    let shown = anna.get(&format!("/console/wallets/{organization}")).await.body;
    assert!(shown.contains("Set the policy"), "{shown}");
    let invalid = anna.post(&path, &fields(&id, "much")).await;
    assert!(invalid.status == 422 && invalid.body.contains("value=\"much\""), "{}", invalid.body);
    assert_eq!(anna.post(&path, &fields(&id, "25.00")).await.status, 303);
    assert_eq!(anna.post(&path, &fields(&id, "30.00")).await.status, 200, "the same form");
    let policy = &anna.get(&format!("/api/wallets/{organization}")).await.json()["policy"];
    let command = site.program.run(&format!("policy show {organization} --json")).await.expect_code(0);
    assert_eq!(*policy, serde_json::from_str::<Value>(&command.out.concat()).expect("an object"));
    assert_eq!((&policy["mode"], &policy["credit_limit"]), (&"exempt".into(), &"25.00".into()));
    assert_eq!(rows(db, ENTRIES).await, ["anna set policy prepaid internal"]);
}

/// A form changes the fields that it has, and no policy that its person did not see.
async fn policy_form_keeps_other_fields(db: &Db) {
    let organization = seed(db, 1).await[0];
    let path = format!("/console/wallets/{organization}/policy");
    let site = Site::with(db, "operate", "adjust-database-url = { env = 'ADJUST_URL' }").await;
    let anna = site.of("anna");
    let policy = async || anna.get(&format!("/api/wallets/{organization}")).await.json()["policy"].clone();
    let send = async |fields: &[(&str, &str)]| {
        let id = request();
        anna.post(&path, &form(&[&[("request", &*id), ("reason", "internal")], fields].concat())).await.status
    };
    let until = "2030-01-01T00:00:00Z";
    let all = [
        ("mode", "exempt"),
        ("credit_limit", "25.00"),
        ("never_suspend_until", until),
        ("contact", "ops@example.com"),
        ("changed_at", ""),
    ];
    assert_eq!(send(&all).await, 303);
    assert_eq!(send(&all).await, 409, "the form is that of the organization without a policy");
    assert_eq!(send(&[]).await, 422, "nothing to set");
    assert_eq!(send(&[("contact", "ops%00@example.com")]).await, 422, "no database stores a zero byte");
    let shown = policy().await["changed_at"].as_str().expect("a time").to_owned();
    assert_eq!(send(&[("mode", "postpaid"), ("changed_at", &shown)]).await, 303);
    let kept = policy().await;
    assert_eq!((&kept["mode"], &kept["credit_limit"]), (&"postpaid".into(), &"25.00".into()));
    assert_eq!((&kept["never_suspend_until"], &kept["contact"]), (&until.into(), &"ops@example.com".into()));
    assert_eq!(send(&[("contact", ""), ("changed_at", &shown)]).await, 409, "it was changed meanwhile");
    assert_eq!(send(&[("contact", ""), ("never_suspend_until", "")]).await, 303);
    let cleared = policy().await;
    assert_eq!(cleared["credit_limit"], "25.00");
    assert_eq!((&cleared["never_suspend_until"], &cleared["contact"]), (&Value::Null, &Value::Null));
}

/// Random forms, many of them invalid or sent twice: what is accepted is in the audit log once, and nothing else is.
async fn accepted_action_has_entry(db: &Db) {
    let organization = seed(db, 1).await[0];
    let site = Site::with(db, "operate", "adjust-database-url = { env = 'ADJUST_URL' }").await;
    site.billed().await;
    let event = dead_letter(db, organization).await;
    let jobs = ["pause", "resume", "trigger", "replay", "cancel"].map(|verb| format!("jobs/billing/{verb}"));
    let events = ["redeliver", "cancel"].map(|verb| format!("events/{event}/{verb}"));
    let policy = [format!("wallets/{organization}/policy"), "wallets/none/policy".to_owned()];
    let paths = [&jobs[..], &events, &policy].concat();
    let mut rng = StdRng::seed_from_u64(33);
    let (mut accepted, mut sent) = (Vec::new(), vec![(String::new(), request())]);
    for _ in 0..90 {
        let mut path = paths[rng.random_range(0..paths.len())].clone();
        let mut id = request();
        if rng.random_ratio(1, 4) {
            (path, id) = sent[rng.random_range(0..sent.len())].clone();
        }
        if rng.random_ratio(1, 8) {
            path = path.replace("billing", "biling");
        }
        let reason = ["why", "", "<b>", "x&y=z"][rng.random_range(0..4)];
        let fields = [
            ("request", &*id),
            ("reason", reason),
            ("scheduled_at", "2020-01-01T00:00:00Z"),
            ("fencing_token", "1"),
            ("mode", ["postpaid", "free"][rng.random_range(0..2)]),
            ("credit_limit", ["5.00", "-1"][rng.random_range(0..2)]),
        ];
        let name = PERSONS[rng.random_range(0..PERSONS.len())].0;
        let json = site.of(name).with("Accept", "application/json");
        let answer = json.post(&format!("/console/{path}"), &form(&fields)).await;
        if answer.status == 200 && answer.json()["accepted"] == true {
            accepted.push(id.clone());
        }
        sent.push((path, id));
    }
    assert!(accepted.len() > 3, "{accepted:?}");
    let details = match db.backend() {
        DbBackend::Sqlite => "details ->> 'request'",
        _ => "details::jsonb ->> 'request'",
    };
    let recorded =
        format!("{details} FROM scheduler_audit_log WHERE actor IN ('vera', 'olga', 'anna') ORDER BY id");
    assert_eq!(rows(db, &recorded).await, accepted);
}

on_every_engine!(
    actions_need_right_and_access,
    action_is_recorded_once,
    invalid_form_changes_nothing,
    accepted_action_has_entry,
    deliveries_are_changed_once,
    policy_form_keeps_other_fields,
    policy_needs_its_own_login,
);
