//! Input that no person sends: names with markup and marks, and random queries, headers and forms.

use billing_test_support::{Db, Fleet, Instance, Plan, eventually, on_every_engine};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{PROXY_SECRET, Site, actions::dead_letter};
use crate::daemon::{now, rows, seed};

/// Markup, quotes, a mark that turns the direction of the text, and as many bytes as a name may have.
fn hostile_name() -> String {
    let mut name = "<script>x</script>\"'&\u{202e}\u{2066}".to_owned();
    while name.len() < 252 {
        name.push('ß');
    }
    name.extend(std::iter::repeat_n('x', 255 - name.len()));
    name
}

async fn hostile_names_are_escaped(db: &Db) {
    let fleet = Fleet::new(db);
    let (organization, plan) = (fleet.wallet("100.00").await, fleet.plan(Plan::unpriced()).await);
    let created = now(db).await - chrono::TimeDelta::hours(2);
    let name = hostile_name();
    assert_eq!(name.len(), 255);
    fleet.instance(Instance::new(organization, plan, created).label(&name)).await;
    db.execute(&format!("UPDATE organizations SET name = '{}'", name.replace('\'', "''"))).await;
    let site = Site::start(db, "read").await;
    site.billed().await;
    let proxy = site.client().with("X-Billing-Proxy-Secret", PROXY_SECRET).with("X-Remote-User", &name);
    let instance = rows(db, "CAST(id AS text) FROM vps_instances").await.remove(0);
    for page in [
        format!("wallets/{organization}"),
        format!("charges/{instance}"),
        "holds?reason=no_price".to_owned(),
        "wallets".to_owned(),
    ] {
        let answer = proxy.get(&format!("/console/{page}")).await;
        assert_eq!(answer.status, 200, "{page}: {}", answer.body);
        assert!(!answer.body.contains("<script>x"), "{page}: {}", answer.body);
        // The person is in the header of each page; the other names are in the first three.
        let escaped = answer.body.matches("&lt;script&gt;x&lt;/script&gt;&quot;").count();
        assert!(
            escaped >= if page == "wallets" { 1 } else { 2 },
            "{page}: {escaped} times in {}",
            answer.body
        );
    }
    let page = format!("/console/charges/{instance}?at=-262143-01-01T00:00:00Z");
    assert_eq!(site.of("vera").get(&page).await.status, 400, "no database stores this time");
    let long =
        site.client().with("X-Billing-Proxy-Secret", PROXY_SECRET).with("X-Remote-User", &format!("{name}x"));
    assert_eq!(long.get("/console/").await.status, 400, "a longer name is not a person's");
}

/// Every text that others write, each on a page that shows it.
async fn hostile_texts_are_escaped(db: &Db) {
    let fleet = Fleet::new(db);
    let (organization, plan) = (fleet.wallet("100.00").await, fleet.plan(Plan::unpriced()).await);
    let created = now(db).await - chrono::TimeDelta::hours(2);
    let instance = fleet.instance(Instance::new(organization, plan, created).label("web-1")).await;
    let site = Site::start(db, "operate").await;
    site.billed().await;
    let event = dead_letter(db, organization).await;
    site.program.run("jobs pause billing --reason <i>\"why\"").await.expect_code(0);
    let run = rows(db, "CAST(id AS text) FROM scheduler_runs WHERE job = 'billing'").await.remove(0);
    let (wallet, charge) = (format!("wallets/{organization}"), format!("charges/{instance}"));
    let (run, event) = (format!("runs/{run}"), format!("events/{event}"));
    let texts = [
        ("organizations SET name", &*wallet),
        ("vps_instances SET label", &charge),
        ("vps_plans SET name", &charge),
        ("billing_holds SET detail", "holds?reason=no_price"),
        ("billing_deliveries SET endpoint", "events"),
        ("billing_deliveries SET last_error", &event),
        ("scheduler_runs SET daemon_id", &run),
        ("scheduler_runs SET reason", &run),
        ("scheduler_runs SET error", &run),
        ("scheduler_pauses SET paused_by", "jobs/billing"),
        ("scheduler_pauses SET reason", "jobs"),
    ];
    for (number, (column, page)) in texts.into_iter().enumerate() {
        let of = if column.starts_with("scheduler_runs") { " WHERE job = 'billing'" } else { "" };
        db.execute(&format!("UPDATE {column} = '<i{number}>\"''&\u{202e}'{of}")).await;
        let shown = eventually("the cached status has the text", async || {
            let shown = site.of("olga").get(&format!("/console/{page}")).await.body;
            shown.contains(&format!("i{number}")).then_some(shown)
        })
        .await;
        assert!(!shown.contains(&format!("<i{number}>")), "{column} on {page}: {shown}");
        assert!(shown.contains(&format!("&lt;i{number}&gt;&quot;")), "{column} on {page}: {shown}");
    }
    let log = site.of("olga").get("/console/audit-log?job=billing").await.body;
    assert!(log.contains("&lt;i&gt;&quot;why&quot;") && !log.contains("<i>"), "{log}");
}

/// Pages, with the keys that the query of each may have.
const PAGES: [(&str, &[&str]); 21] = [
    ("", &[]),
    ("jobs", &[]),
    ("jobs/billing", &["runs"]),
    ("jobs/billing/timeline", &["runs"]),
    ("jobs/%00", &["runs"]),
    ("runs/1", &[]),
    ("approvals", &[]),
    ("holds", &["reason", "after", "organization"]),
    ("wallets", &["below", "find", "runway", "after"]),
    ("wallets/x", &[]),
    ("wallets/%00", &[]),
    ("charges/x", &["at"]),
    ("charges/%00", &["at"]),
    ("billing", &[]),
    ("billing/dry-run", &[]),
    ("schedule", &["text", "zone", "from", "job"]),
    ("events", &["status", "organization", "event", "endpoint"]),
    ("events/x", &[]),
    ("daemons", &[]),
    ("audit-log", &["before", "actor", "action", "job"]),
    ("assets/x", &["unknown"]),
];
const VALUES: [&str; 20] = [
    "",
    "0",
    "-1",
    "9223372036854775807",
    "99999999999999999999",
    "NaN",
    "billing",
    "1e400",
    "%00",
    "%ff%fe",
    "%E2%80%AE",
    "'--",
    "0 0 29 2 *",
    "2026-11-22T15:00:00Z",
    "-262143-01-01T00:00:00Z",
    "+262142-12-31T23:59:59Z",
    "Europe/Berlin",
    "..%2F..",
    "%3Cscript%3E",
    "00000000-0000-0000-0000-000000000000",
];
const HEADERS: [(&str, &str); 8] = [
    ("If-None-Match", "\"\u{fffd}\""),
    ("Cookie", "billing-console=olga.9223372036854775807.00; =; ;;"),
    ("Cookie", "billing-console=..-9223372036854775808."),
    ("Accept", "application/json"),
    ("Origin", "null"),
    ("X-Remote-User", "\u{202e}"),
    ("X-Billing-Proxy-Secret", ""),
    ("Accept-Language", "\u{fffd}"),
];

async fn random_requests_are_answered(db: &Db) {
    seed(db, 1).await;
    let site = Site::start(db, "operate").await;
    site.billed().await;
    let mut rng = StdRng::seed_from_u64(7);
    let mut pick = |from: &[&'static str]| from[rng.random_range(0..from.len())];
    let actions: Vec<String> = billing_daemon::console_actions()
        .into_iter()
        .map(|(path, _)| {
            path.replace("{name}", "billing").replace("{organization}", "x").replace("{id}", "x")
        })
        .collect();
    let fields = [
        "request",
        "reason",
        "fencing_token",
        "scheduled_at",
        "announced",
        "currency",
        "amount",
        "organization",
        "instances",
        "hours",
        "mode",
        "credit_limit",
        "never_suspend_until",
        "contact",
        "changed_at",
    ];
    let mut answered = 0;
    for number in 0..240_usize {
        let mut client = site.of(["olga", "anna"][number % 2]);
        if number % 3 == 0 {
            let (name, value) = HEADERS[number % HEADERS.len()];
            client = client.with(name, value);
        }
        let (line, body) = if number % 4 == 0 {
            let pairs: Vec<_> = fields.iter().map(|field| format!("{field}={}", pick(&VALUES))).collect();
            (format!("POST /console{}", actions[number / 4 % actions.len()]), pairs.join("&"))
        } else {
            let (page, keys) = PAGES[number % PAGES.len()];
            let pairs: Vec<_> = keys.iter().map(|key| format!("{key}={}", pick(&VALUES))).collect();
            let query = pairs.join("&").replace(' ', "+");
            (format!("GET /console/{page}?{query}"), String::new())
        };
        let sent = client.with("Sec-Fetch-Site", "same-origin");
        // A handler that panics answers nothing.
        let answer = sent.try_send(&line, &body).await;
        let answer = answer.unwrap_or_else(|| panic!("no answer to {line} with {body}"));
        assert!(
            answer.status != 500 && answer.status != 503,
            "{} to {line} with {body}: {}",
            answer.status,
            answer.body
        );
        assert!(!answer.body.contains("<script>"), "{line}: {}", answer.body);
        answered += u32::from(answer.status == 200);
    }
    assert!(answered > 20, "{answered} pages are shown");
    assert_eq!(site.running.lines_with("panicked"), [""; 0]);
}

on_every_engine!(hostile_names_are_escaped, hostile_texts_are_escaped, random_requests_are_answered);
