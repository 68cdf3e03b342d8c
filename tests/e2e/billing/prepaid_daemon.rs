//! The prepaid policy in a running daemon, and the commands of operators for its events and policies.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use billing_test_support::{
    BILLING_ROLE, Db, Fleet, Instance, Login, MailServer, Plan, Pooler, Program, Reply, WebhookReceiver,
    eventually, on_variants,
};
use chrono::TimeDelta;
use sea_orm::DbBackend;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    TEN_CENTS_AN_HOUR, number, prepaid_deliveries::receiver, prepaid_enforced::add_instances, texts,
};
use crate::{
    commands::{
        http::{HTTP, address, get},
        json,
    },
    daemon::{BILLING, HEARTBEAT, daemon, job, now},
};

/// The jobs of the policy, each of them every second.
fn program(db: &Db, panel: &WebhookReceiver, mails: &MailServer) -> Program {
    program_every(db, panel, mails, BILLING, "1s")
}

/// The jobs of the policy at this interval, next to billing.
fn program_every(
    db: &Db,
    panel: &WebhookReceiver,
    mails: &MailServer,
    billing: &str,
    interval: &str,
) -> Program {
    let prepaid = job("prepaid", "prepaid", interval, "run-at-start = true\nparams.mode = 'enforce'");
    let endpoints = format!(
        "run-at-start = true
         [[job.params.endpoint]]
         name = 'panel'
         kind = 'webhook'
         url = {{ file = 'panel-url' }}
         secrets = [{{ credential = 'panel-secret' }}]
         types = ['billing.service.*']
         needed = true
         [[job.params.endpoint]]
         name = 'mail'
         kind = 'mail'
         smtp = '{}'
         from = 'Example Hosting <billing@hosting.example>'
         types = ['billing.wallet.*']
         needed = true",
        mails.url()
    );
    daemon(db, &[billing, &prepaid, &job("deliver", "deliver", interval, &endpoints)])
        .env("CREDENTIALS_DIRECTORY", ".")
        .file("panel-url", &panel.url())
        .file("panel-secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
}

async fn instance_of(db: &Db, balance: &str) -> Uuid {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let org = fleet.wallet(balance).await;
    fleet.instance(Instance::new(org, plan, now(db).await - TimeDelta::minutes(90))).await;
    org
}

/// Stores that an organization was suspended long ago.
pub(super) async fn suspend(db: &Db, org: Uuid) {
    let long_ago = match db.backend() {
        DbBackend::Sqlite => "1",
        _ => "to_timestamp(0)",
    };
    db.execute(&format!(
        "INSERT INTO billing_standings (organization_id, state, since, watched, episode, level, order_number, desired,
                                        evaluated_at)
         VALUES ('{org}', 'suspended', {long_ago}, true, 0, -1, 7, 'suspended', {long_ago})"
    ))
    .await;
}

/// A customer whose wallet is low gets a mail, and one who was suspended and has paid is resumed.
async fn warn_and_resume(db: &Db, program: &Program, panel: &WebhookReceiver, mails: &MailServer) {
    program.run("check").await.expect_code(0);
    let (_, paid) = (instance_of(db, "1.00").await, instance_of(db, "90.00").await);
    suspend(db, paid).await;
    let running = program.start("run");
    let resumed =
        eventually("the paid organization is resumed", async || panel.received().into_iter().next()).await;
    assert_eq!(
        (resumed.kind(), &resumed.body["data"]["organization"]),
        ("billing.service.resume", &json!(paid))
    );
    eventually("both customers have mail", async || (mails.mails().len() >= 2).then_some(())).await;
    eventually("billing charges what is due", async || {
        let requested = "SELECT count(*) FROM scheduler_runs WHERE job = 'billing' AND cause = 'manual'";
        (number(db, requested).await > 0).then_some(())
    })
    .await;
    running.terminated().await.expect_code(0);
}

async fn daemon_warns_and_resumes(db: &Db) {
    let (panel, mails) = (receiver(), MailServer::start());
    let program = program(db, &panel, &mails);
    warn_and_resume(db, &program, &panel, &mails).await;

    let events = json_list(&program, "events list --json").await;
    let event = |kind: &str| events.iter().find(|event| event["type"] == kind).expect(kind).clone();
    assert_eq!(event("billing.service.resume")["status"], "sent");
    let low = event("billing.wallet.low");
    assert_eq!((&low["endpoint"], &low["code"]), (&json!("mail"), &json!(250)));
    let text = program.run("events list --status sent").await.expect_code(0).text();
    assert!(text.contains("billing.wallet.recovered"), "{text}");
    let id = low["event"].as_str().expect("an id").to_owned();
    let shown = json(&program.run(&format!("events show {id} --json")).await.expect_code(0));
    assert_eq!(shown["body"]["data"]["level"], 24, "{shown}");
    program.run(&format!("events show {id}")).await.expect_code(0);
    db.execute(&format!(
        "UPDATE billing_deliveries SET status = 'dead', sent_at = NULL WHERE event_id = '{id}'"
    ))
    .await;
    let status = program.run("status").await.expect_code(1).text();
    assert!(status.contains("dead deliveries to endpoint `mail`: 1"), "{status}");
    // An endpoint that has accepted the event gets it again only if the operator names it.
    db.execute(&format!(
        "INSERT INTO billing_deliveries (event_id, endpoint, organization_id, needed, status, next_at, sent_at)
         SELECT event_id, 'crm', organization_id, false, 'sent', next_at, next_at FROM billing_deliveries WHERE event_id = '{id}'"
    ))
    .await;
    let of_event = async || {
        texts(
            db,
            &format!(
                "SELECT endpoint || ' ' || status FROM billing_deliveries WHERE event_id = '{id}' ORDER BY 1"
            ),
        )
        .await
    };
    let changed = json(&program.run(&format!("events redeliver {id} --json")).await.expect_code(0));
    assert_eq!(
        (changed, of_event().await),
        (json!({ "deliveries": 1 }), texts_of(["crm sent", "mail pending"]))
    );
    db.execute(&format!(
        "UPDATE billing_deliveries SET status = 'sent', sent_at = next_at WHERE event_id = '{id}' AND endpoint = 'mail'"
    ))
    .await;
    let text = program.run(&format!("events redeliver {id}")).await.expect_code(0).text();
    assert!(text.contains("every endpoint has accepted the event"), "{text}");
    let text = program.run(&format!("events redeliver {id} --endpoint cmr")).await.expect_code(64).text();
    assert!(text.contains("it has: crm, mail"), "{text}");
    let again = format!("events redeliver {id} --endpoint crm --json");
    let changed = json(&program.run(&again).await.expect_code(0));
    assert_eq!(
        (changed, of_event().await),
        (json!({ "deliveries": 1 }), texts_of(["crm pending", "mail sent"]))
    );
    assert_eq!(json_list(&program, "events list --status pending --json").await.len(), 1);
    let changed = json(&program.run(&format!("events cancel {id} --json")).await.expect_code(0));
    assert_eq!(changed, json!({ "deliveries": 1 }));
    let unknown = Uuid::nil();
    for command in ["show", "redeliver", "cancel"] {
        program.run(&format!("events {command} {unknown}")).await.expect_code(64);
    }
    let actions = texts(db, "SELECT action FROM scheduler_audit_log ORDER BY id").await;
    assert!(actions.ends_with(&texts_of(["redeliver", "cancel delivery"])), "{actions:?}");
    let reconciled = json(&program.run("prepaid reconcile --json").await.expect_code(0));
    assert_eq!(reconciled, json!({ "sent": 2 }));
}

fn texts_of<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}

async fn json_list(program: &Program, arguments: &str) -> Vec<Value> {
    let text = program.run(arguments).await.expect_code(0).out.join("\n");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

async fn test_event_shows_answer_of_endpoint(db: &Db) {
    let (panel, mails) = (receiver(), MailServer::start());
    let program = program(db, &panel, &mails);
    let tested = json(&program.run("webhook test panel --json").await.expect_code(0));
    assert_eq!(tested["answer"]["code"], 200);
    assert!(tested["answer"]["ms"].as_u64() < Some(60_000), "{tested}");
    panel.replies([Reply::status(410)]);
    program.run("webhook test panel").await.expect_code(1);
    assert_eq!(panel.kinds(), ["billing.test"; 2]);
    let mailed =
        json(&program.run("webhook test mail --to ada@customer.example --json").await.expect_code(0));
    assert_eq!(mailed["answer"]["code"], 250);
    assert_eq!(mails.subjects(), ["Test of the mails about your balance"]);
    for wrong in ["webhook test mail", "webhook test panel --to ada@customer.example"] {
        program.run(wrong).await.expect_code(64);
    }
    let text = program.run("webhook test panl").await.expect_code(64).text();
    assert!(text.contains("did you mean `panel`?"), "{text}");
    let wrong = program.file("panel-secret", "whsec_c2hvcnQ=");
    let text = wrong.run("webhook test panel").await.expect_code(1).text();
    assert!(text.contains("24 to 64 bytes") && !text.contains("c2hvcnQ"), "{text}");
}

async fn policy_is_set_by_its_own_role(db: &Db) {
    let (panel, mails) = (receiver(), MailServer::start());
    let program = program(db, &panel, &mails);
    let org = instance_of(db, "1.00").await;
    let until = "2030-01-02T03:04:05Z";
    let set = format!(
        "policy set {org} --mode exempt --credit-limit 25.00 --never-suspend-until {until} --contact a@b.example --reason test --json"
    );
    if db.backend() == DbBackend::Postgres {
        program.run(&set).await.expect_code(77);
    }
    let adjust = db.url_for(Login::Billing).replace(BILLING_ROLE, "billing_adjust");
    let program =
        if db.backend() == DbBackend::Sqlite { program } else { program.env("DATABASE_URL", &adjust) };
    let policy = json(&program.run(&set).await.expect_code(0));
    assert_eq!(
        (&policy["mode"], &policy["credit_limit"], &policy["never_suspend_until"], &policy["contact"]),
        (&json!("exempt"), &json!("25.00"), &json!(until), &json!("a@b.example"))
    );
    program.run(&format!("policy set {org} --never-suspend-until none --reason later")).await.expect_code(0);
    let policy = json(&program.run(&format!("policy show {org} --json")).await.expect_code(0));
    assert_eq!((&policy["never_suspend_until"], &policy["mode"]), (&Value::Null, &json!("exempt")));
    assert_eq!(policy["reason"], "later");
    assert_eq!(number(db, "SELECT count(*) FROM scheduler_audit_log WHERE action = 'set policy'").await, 2);
    for invalid in
        ["--credit-limit -1.00", "--credit-limit much", "--never-suspend-until soon", "--contact unknown"]
    {
        program.run(&format!("policy set {org} {invalid} --reason test")).await.expect_code(64);
    }
    program.run("policy set missing --mode exempt --reason test").await.expect_code(64);
    let standing = json(&program.run(&format!("standing show {org} --json")).await.expect_code(0));
    assert_eq!(standing["credit_limit"], "25.00", "{standing}");
    let guards = standing["suspension"]["unmet"].as_array().expect("a list");
    assert!(guards.iter().any(|unmet| unmet["guard"] == "exempt"), "{standing}");
}

/// A receiver that lost everything compares its state with the wanted one.
async fn standings_show_wanted_states(db: &Db) {
    let suspended = [instance_of(db, "0.00").await, instance_of(db, "0.00").await];
    let (running, unknown) = (instance_of(db, "90.00").await, Uuid::nil());
    for org in suspended {
        suspend(db, org).await;
    }
    let daemon = daemon(db, &[HTTP, HEARTBEAT]).start("run");
    let address = address(&daemon).await;
    let standings = async |query: &str| {
        let answer = get(&address, &format!("/api/standings?{query}")).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.body);
        answer.json().as_array().expect("a list").clone()
    };
    let first = standings("desired=suspended&limit=1").await;
    let after = first[0]["organization"].as_str().expect("an id");
    let second = standings(&format!("desired=suspended&limit=1&after={after}")).await;
    let pages = [&first[0], &second[0]];
    for org in suspended {
        let entry = pages.iter().find(|entry| entry["organization"] == json!(org)).expect("it is listed");
        assert_eq!((&entry["state"], &entry["order"]), (&json!("suspended"), &json!(7)));
        assert_eq!((&entry["acked_order"], &entry["since"].is_string()), (&Value::Null, &true));
        assert_eq!(entry["instances"].as_array().map(Vec::len), Some(1), "{entry}");
    }
    assert_eq!(standings("desired=running").await, [Value::Null; 0]);
    let never_low = standings(&format!("organization={running}")).await;
    assert_eq!((&never_low[0]["desired"], &never_low[0]["order"]), (&json!("running"), &Value::Null));
    // A list with more instances is read in pages.
    add_instances(db, running, 1_499).await;
    let many = standings(&format!("organization={running}")).await;
    assert_eq!((&many[0]["instances"], &many[0]["more"]), (&Value::Null, &json!(true)));
    let (mut seen, mut query) = (BTreeSet::new(), String::new());
    for expected in [1_000, 500] {
        let path = format!("/api/standings/{running}/instances?{query}");
        let page = get(&address, &path).await.json().as_array().expect("a list").clone();
        assert_eq!(page.len(), expected);
        seen.extend(page.iter().map(|instance| instance["provider_instance_id"].to_string()));
        query = format!("after={}", page[expected - 1]["id"].as_str().expect("an id"));
    }
    assert_eq!(seen.len(), 1_500);
    for (path, status) in [(format!("{unknown}/instances"), 404), ("acme/instances".to_owned(), 400)] {
        assert_eq!(get(&address, &format!("/api/standings/{path}")).await.status, status, "{path}");
    }
    for (query, status) in [
        (format!("organization={unknown}"), 404),
        ("desired=off".to_owned(), 400),
        ("organization=acme".to_owned(), 400),
    ] {
        assert_eq!(get(&address, &format!("/api/standings?{query}")).await.status, status, "{query}");
    }
    daemon.terminated().await.expect_code(0);
}

/// Each kind of problem that `status` reports is an event when it appears and when it clears.
async fn problems_are_events_for_operators(db: &Db) {
    let operators = receiver();
    let endpoint = format!(
        "run-at-start = true
         [[job.params.endpoint]]
         name = 'operators'
         kind = 'webhook'
         url = '{}'
         secrets = ['whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw']
         types = ['billing.problem.*']",
        operators.url()
    );
    let program = daemon(db, &[BILLING, HEARTBEAT, &job("deliver", "deliver", "1s", &endpoint)]);
    let running = program.start("run");
    running.wait_for_line("job `billing` done").await;
    let has = async |kind: &str| {
        eventually(kind, async || {
            let found = operators.received().into_iter().filter(|event| event.kind() == kind);
            found.into_iter().find(|event| event.body["data"]["kind"] == "billing_paused")
        })
        .await
    };
    program.run("jobs pause billing --reason maintenance").await.expect_code(0);
    let appeared = has("billing.problem.appeared").await;
    let messages = appeared.body["data"]["messages"].to_string();
    assert!(messages.contains("maintenance"), "{messages}");
    program.run("jobs resume billing").await.expect_code(0);
    has("billing.problem.cleared").await;
    running.terminated().await.expect_code(0);
    let of_pause = operators.received();
    let of_pause = of_pause.iter().filter(|event| event.body["data"]["kind"] == "billing_paused");
    assert_eq!(of_pause.count(), 2, "each is sent once");
}

/// The shipped schedule in real time: two checks are a minute apart, and a payment that just misses one waits for the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes more than a minute; a nightly step runs it"]
async fn shipped_schedule_resumes_within_seventy_seconds() {
    let db = Db::postgres().await;
    let (panel, mails) = (receiver(), MailServer::start());
    let org = instance_of(&db, "0.00").await;
    suspend(&db, org).await;
    let hourly =
        "\n[[job]]\nname = 'billing'\nkind = 'billing'\nschedule = { every = '1h' }\nrun-at-start = true\n";
    let daemon = program_every(&db, &panel, &mails, hourly, "60s").start("run");
    daemon.wait_for_line("job `prepaid` done").await;
    assert_eq!(panel.received().len(), 0);
    let began = Instant::now();
    Fleet::new(&db).top_up(org, "9.00").await;
    while panel.received().is_empty() && began.elapsed() < Duration::from_mins(3) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let waited = began.elapsed();
    assert_eq!(panel.kinds(), ["billing.service.resume"]);
    println!("resumed {} ms after the payment", waited.as_millis());
    assert!(waited < Duration::from_secs(70), "{waited:?}");
    daemon.terminated().await.expect_code(0);
}

/// Each transaction may have another server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooled_daemon_warns_and_resumes() {
    let db = Db::g3_role().await;
    let (panel, mails, pooler) = (receiver(), MailServer::start(), Pooler::start(2));
    let program = program(&db, &panel, &mails).env("DATABASE_URL", &pooler.url(&db, Login::Billing));
    warn_and_resume(&db, &program, &panel, &mails).await;
}

on_variants!(daemon_warns_and_resumes: sqlite, g3_role);
on_variants!(problems_are_events_for_operators: sqlite, g3_role);
on_variants!(standings_show_wanted_states: sqlite, g3_role);
on_variants!(test_event_shows_answer_of_endpoint: sqlite);
on_variants!(policy_is_set_by_its_own_role: sqlite, g2_role);
