//! The prepaid policy in a running daemon, and the commands of operators for its events and policies.

use billing_test_support::{
    BILLING_ROLE, Db, Fleet, Instance, Login, MailServer, Plan, Program, Reply, WebhookReceiver, eventually,
    on_variants,
};
use chrono::TimeDelta;
use sea_orm::DbBackend;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{TEN_CENTS_AN_HOUR, number, prepaid_deliveries::receiver, texts};
use crate::{
    commands::json,
    daemon::{BILLING, daemon, job, now},
};

/// The jobs of the policy, each of them every second.
fn program(db: &Db, panel: &WebhookReceiver, mails: &MailServer) -> Program {
    let prepaid = job("prepaid", "prepaid", "1s", "run-at-start = true\nparams.mode = 'enforce'");
    let endpoints = format!(
        "run-at-start = true
         [[job.params.endpoint]]
         name = 'panel'
         kind = 'webhook'
         url = {{ file = 'panel-url' }}
         secrets = [{{ file = 'panel-secret' }}]
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
    daemon(db, &[BILLING, &prepaid, &job("deliver", "deliver", "1s", &endpoints)])
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

async fn daemon_warns_and_resumes(db: &Db) {
    let (panel, mails) = (receiver(), MailServer::start());
    let program = program(db, &panel, &mails);
    program.run("check").await.expect_code(0);
    let (_, paid) = (instance_of(db, "1.00").await, instance_of(db, "90.00").await);
    let long_ago = match db.backend() {
        DbBackend::Sqlite => "1",
        _ => "to_timestamp(0)",
    };
    db.execute(&format!(
        "INSERT INTO billing_standings (organization_id, state, since, watched, episode, level, epoch, desired, evaluated_at)
         VALUES ('{paid}', 'suspended', {long_ago}, true, 0, -1, 7, 'suspended', {long_ago})"
    ))
    .await;
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
    let changed = json(&program.run(&format!("events redeliver {id} --json")).await.expect_code(0));
    assert_eq!(changed, json!({ "deliveries": 1 }));
    assert_eq!(json_list(&program, "events list --status pending --json").await.len(), 1);
    let changed = json(&program.run(&format!("events cancel {id} --json")).await.expect_code(0));
    assert_eq!(changed, json!({ "deliveries": 1 }));
    let unknown = Uuid::nil();
    for command in ["show", "redeliver", "cancel"] {
        program.run(&format!("events {command} {unknown}")).await.expect_code(64);
    }
    let actions = texts(db, "SELECT action FROM scheduler_audit_log ORDER BY id").await;
    assert!(actions.ends_with(&["redeliver".to_owned(), "cancel delivery".to_owned()]), "{actions:?}");
    let reconciled = json(&program.run("prepaid reconcile --json").await.expect_code(0));
    assert_eq!(reconciled, json!({ "sent": 2 }));
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

on_variants!(daemon_warns_and_resumes: sqlite, g3_role);
on_variants!(test_event_shows_answer_of_endpoint: sqlite);
on_variants!(policy_is_set_by_its_own_role: sqlite, g2_role);
