//! Who may see the console, and which requests are refused before anything else.

use std::fs;

use billing_test_support::{Db, on_every_engine};

use super::{PROXY_SECRET, Site, TOKENS};
use crate::daemon::seed;

const PAGES: [&str; 5] =
    ["/console/", "/console/jobs/billing", "/console/holds", "/console/wallets", "/console/audit-log"];

async fn pages_need_a_person(db: &Db) {
    seed(db, 1).await;
    let site = Site::start(db, "read").await;
    let anonymous = site.client();
    for page in PAGES {
        let answer = anonymous.get(page).await;
        assert_eq!(answer.status, 401, "{page}");
        assert!(answer.body.contains("<h1>Sign in</h1>"), "{page}: {}", answer.body);
        let answer = site.of("vera").get(page).await;
        assert_eq!(answer.status, 200, "{page}: {}", answer.body);
    }
    let answer = anonymous.get("/api/overview").await;
    assert_eq!((answer.status, &*answer.body), (401, ""));
    assert_eq!(site.of("vera").get("/api/overview").await.status, 200);
    // What machines read needs no person.
    for path in ["/healthz", "/api/status", "/api/jobs", "/api/runs", "/metrics", "/api/openapi.json"] {
        assert_eq!(anonymous.get(path).await.status, 200, "{path}");
    }
    let document = anonymous.get("/api/openapi.json").await.json();
    for path in [
        "billing",
        "schedule",
        "events",
        "events/{id}",
        "overview",
        "jobs/{name}",
        "jobs/{name}/timeline",
        "runs/{id}",
        "approvals",
        "holds",
        "wallets",
        "audit-log",
    ] {
        assert!(document["paths"][format!("/api/{path}")]["get"]["responses"]["401"].is_object(), "{path}");
    }
    for (path, status) in [
        ("/console", 303),
        ("/console/jobs?unknown=1", 400),
        ("/console/jobs/billing?runs=many", 400),
        ("/console/jobs/biling", 404),
        ("/console/runs/x", 404),
        ("/console/nothing", 404),
    ] {
        assert_eq!(site.of("vera").get(path).await.status, status, "{path}");
    }
    let unknown = site.of("vera").get("/api/jobs/biling").await;
    assert_eq!(unknown.json()["error"], "there is no job `biling`, did you mean `billing`?");

    // The proxy names the person, and escapes nothing.
    let proxy = site.client().with("X-Billing-Proxy-Secret", PROXY_SECRET);
    let page = proxy.clone().with("X-Remote-User", "<b>\"eve\"</b>").get("/console/").await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains("&lt;b&gt;&quot;eve&quot;&lt;/b&gt;") && !page.body.contains("<b>\"eve"));
    let twice = proxy.with("X-Remote-User", "a").with("X-Remote-User", "b");
    assert_eq!(twice.get("/console/").await.status, 400);
    assert_eq!(site.client().with("X-Remote-User", "Olga Ö.").get("/console/").await.status, 401);
}

async fn sign_in_ends_with_token_line(db: &Db) {
    seed(db, 1).await;
    let site = Site::start(db, "operate").await;
    let form = format!("token={}", site.token("olga"));
    // Another origin is refused before the token is read.
    let foreign = site.client().with("Sec-Fetch-Site", "cross-site");
    assert_eq!(foreign.send("POST /console/sign-in", &form).await.status, 403);
    assert_eq!(site.client().send("POST /console/sign-in", &form).await.status, 403);
    let wrong = site.client().post("/console/sign-in", "token=wrong").await;
    assert_eq!(wrong.status, 401);
    assert!(wrong.body.contains("Not signed in: the token is wrong."), "{}", wrong.body);
    let metrics = site.client().get("/metrics").await.body;
    for line in ["{reason=\"credential\"} 1", "{reason=\"origin\"} 2"] {
        assert!(metrics.contains(&format!("billing_daemon_console_refused_total{line}")), "{line}");
    }

    let answer = site.client().post("/console/sign-in", &form).await;
    assert_eq!((answer.status, answer.header("location")), (303, Some("./")));
    let cookie = answer.header("set-cookie").expect("a cookie").to_owned();
    assert!(cookie.contains("; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200"), "{cookie}");
    let cookie = cookie.split(';').next().expect("a pair");
    let signed_in = site.client().with("Cookie", cookie);
    let page = signed_in.get("/console/").await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains("<b>olga</b>") && page.body.contains("Sign out"), "{}", page.body);

    let out = signed_in.post("/console/sign-out", "").await;
    assert_eq!(out.status, 303);
    assert!(out.header("set-cookie").is_some_and(|cookie| cookie.contains("Max-Age=0")));

    let file = site.program.folder().join(TOKENS);
    let lines = fs::read_to_string(&file).expect("the tokens");
    let others: Vec<_> = lines.lines().filter(|line| !line.starts_with("olga ")).collect();
    fs::write(&file, others.join("\n")).expect("our own file");
    assert_eq!(signed_in.get("/console/").await.status, 401, "the line is removed");
    assert_eq!(site.of("vera").get("/console/").await.status, 200);
}

on_every_engine!(pages_need_a_person);

/// Who can read the file with the tokens cannot make a cookie, and a configured key survives a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_key_outlives_daemon() {
    let db = Db::sqlite().await;
    seed(&db, 1).await;
    for (more, survives) in [("", false), ("session-key = { env = 'SESSION_KEY' }", true)] {
        let site = Site::with(&db, "read", more).await;
        let form = format!("token={}", site.token("vera"));
        let signed_in = site.client().post("/console/sign-in", &form).await;
        let cookie = signed_in.header("set-cookie").and_then(|cookie| cookie.split(';').next());
        let cookie = cookie.expect("a cookie").to_owned();
        assert_eq!(site.client().with("Cookie", &cookie).get("/console/").await.status, 200);
        let again = site.program.start("run");
        let address = crate::commands::http::address(&again).await;
        let status = super::Client::new(&address).with("Cookie", &cookie).get("/console/").await.status;
        assert_eq!(status, if survives { 200 } else { 401 }, "{more}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_token_line_ends_sign_in() {
    sign_in_ends_with_token_line(&Db::sqlite().await).await;
}

#[tokio::test]
async fn exposed_tokens_file_prevents_start() {
    let db = Db::sqlite().await;
    let jobs = format!("{}{}", super::section("read", ""), super::HEARTBEAT);
    let program = crate::daemon::daemon(&db, &[&jobs]).env("PROXY_SECRET", PROXY_SECRET).file(TOKENS, "");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(program.folder().join(TOKENS), mode).expect("our own file");
    let ended = program.run("run").await.expect_code(78);
    assert!(ended.text().contains("contains a secret and has mode 0644"), "{}", ended.text());
}
