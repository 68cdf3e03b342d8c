//! What the prepaid policy sends: notices by webhook, by mail and to a program, each at least once under one id.

use std::{path::Path, time::Duration};

use billing_jobs::{
    DeliverJob, DeliverParams, PrepaidJob, PrepaidParams,
    prepaid::{Drained, Endpoint, Mode, Which},
};
use billing_scheduler::{Job as _, ManualClock, Outcome};
use billing_test_support::{Db, Fleet, Instance, MailServer, Plan, Reply, WebhookReceiver};
use sea_orm::DbBackend;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{TEN_CENTS_AN_HOUR, hour, minute, number, prepaid::Checker, texts};

pub(super) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

pub(super) fn webhook(receiver: &WebhookReceiver, types: &[&str], needed: bool) -> Endpoint {
    endpoint(&json!({ "name": "panel", "kind": "webhook", "types": types, "needed": needed,
                      "url": receiver.url(), "secrets": [OLD_SECRET, SECRET] }))
}

pub(super) fn mail(server: &MailServer, types: &[&str]) -> Endpoint {
    endpoint(&json!({ "name": "mail", "kind": "mail", "types": types, "needed": true, "smtp": server.url(),
                      "from": "Example Hosting <billing@hosting.example>", "top-up-url": "https://panel.example/pay" }))
}

fn endpoint(params: &Value) -> Endpoint {
    serde_json::from_value(params.clone()).expect("an endpoint")
}

pub(super) fn receiver() -> WebhookReceiver {
    WebhookReceiver::start(SECRET)
}

pub(super) fn params(mode: Mode) -> PrepaidParams {
    PrepaidParams { mode, ..PrepaidParams::default() }
}

/// Makes the deliveries that are due so many minutes after the start.
pub(super) async fn deliver(checker: &Checker, minutes: i64) -> Drained {
    let now = Some(minute(minutes).timestamp_micros());
    checker.prepaid.deliver(Which::All, now, &|| false).await.expect("the deliveries are made")
}

/// An organization whose wallet is low after an hour, checked then.
async fn low_wallet(db: &Db, endpoints: Vec<Endpoint>) -> (Checker, Uuid) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let org = fleet.wallet("7.30").await;
    fleet.instance(Instance::new(org, plan, hour(0))).await;
    let checker = Checker::with(db, &params(Mode::Notify), endpoints).await;
    let evaluation = checker.bill_and_check(db, 1).await;
    assert_eq!(evaluation.notices, 1);
    (checker, org)
}

async fn statuses(db: &Db) -> Vec<String> {
    texts(db, "SELECT endpoint || ' ' || status FROM billing_deliveries ORDER BY 1").await
}

async fn delivered(db: &Db) -> i64 {
    number(db, "SELECT count(*) FROM billing_notices WHERE delivered_at IS NOT NULL").await
}

async fn notices_reach_every_endpoint(db: &Db) {
    let (panel, mails) = (receiver(), MailServer::start());
    let types = ["billing.wallet.*"];
    let (checker, org) = low_wallet(db, vec![webhook(&panel, &types, true), mail(&mails, &types)]).await;

    assert_eq!(deliver(&checker, 62).await, Drained { sent: 2, ..Drained::default() });

    let (events, mails) = (panel.received(), mails.mails());
    assert_eq!((events.len(), mails.len()), (1, 1));
    let event = &events[0];
    assert_eq!((event.kind(), event.signatures), ("billing.wallet.low", 2));
    let data = &event.body["data"];
    assert_eq!(
        (&data["organization"], &data["level"], &data["runway_hours"], &data["balance"], &data["currency"]),
        (&json!(org), &json!(72), &json!(72), &json!("7.20"), &json!("USD"))
    );
    let owner = "SELECT email FROM users WHERE id = (SELECT owner_id FROM organizations WHERE id = '{org}')";
    assert_eq!(mails[0].to, texts(db, &owner.replace("{org}", &org.to_string())).await[0]);
    assert_eq!(mails[0].header("To"), format!("Owner <{}>", mails[0].to));
    assert_eq!(mails[0].header("Subject"), "Your balance lasts for 3 days");
    assert_eq!(mails[0].header("Message-ID"), format!("<{}@hosting.example>", event.id));
    assert_eq!(mails[0].header("Auto-Submitted"), "auto-generated");
    assert_eq!(delivered(db).await, 1);
    assert_eq!(deliver(&checker, 63).await, Drained::default(), "nothing is sent twice");
}

async fn failed_delivery_keeps_its_id(db: &Db) {
    let panel = receiver();
    panel.replies([
        Reply::status(500),
        Reply::status(302).header("Location", "http://127.0.0.1:9/"),
        Reply::status(202),
        Reply::status(503).header("Retry-After", "36000"),
        Reply::status(200).body("not JSON"),
    ]);
    let (checker, _) = low_wallet(db, vec![webhook(&panel, &["billing.*"], true)]).await;
    let failed = Drained { failed: 1, ..Drained::default() };
    // The attempts follow after 5 s, 5 min, 30 min, and the ten hours that the receiver requests.
    for (minutes, expected) in [
        (61, failed),
        (61, Drained::default()),
        (62, failed),
        (65, Drained::default()),
        (69, failed),
        (90, Drained::default()),
        (110, failed),
        (700, Drained::default()),
        (711, Drained { sent: 1, ..Drained::default() }),
    ] {
        assert_eq!(deliver(&checker, minutes).await, expected, "after {minutes} minutes");
        assert_eq!(delivered(db).await, i64::from(expected.sent > 0));
    }
    let events = panel.received();
    assert_eq!(events.len(), 5);
    assert!(
        events.iter().all(|event| (&event.id, &event.text) == (&events[0].id, &events[0].text)),
        "{events:?}"
    );
}

async fn final_answers_are_kept(db: &Db) {
    let (panel, mails) = (receiver(), MailServer::start());
    panel.replies([Reply::status(410)]);
    mails.refuses(["451 later", "550 no such user"]);
    let types = ["billing.wallet.*"];
    let (checker, org) = low_wallet(db, vec![webhook(&panel, &types, false), mail(&mails, &types)]).await;
    assert_eq!(deliver(&checker, 61).await, Drained { failed: 1, dead: 1, ..Drained::default() });
    assert_eq!(deliver(&checker, 62).await, Drained { dead: 1, ..Drained::default() });
    assert_eq!(statuses(db).await, ["mail dead", "panel dead"]);
    assert_eq!(delivered(db).await, 0, "a refused mail is not a delivered notice");

    // The endpoint that is gone waits for an operator; the other one continues.
    let fleet = Fleet::new(db);
    fleet.top_up(org, "-4.80").await;
    checker.check(63).await;
    assert_eq!(deliver(&checker, 64).await, Drained { sent: 1, ..Drained::default() });
    assert_eq!(mails.subjects(), ["Your balance lasts for 24 hours"]);
    db.execute("UPDATE billing_deliveries SET status = 'pending', attempts = 0, last_code = NULL WHERE endpoint = 'panel'")
        .await;
    panel.replies([Reply::status(409).body(r#"{"state":"running","by":"ada","reason":"migration"}"#)]);
    assert_eq!(deliver(&checker, 65).await, Drained { sent: 1, ..Drained::default() });
    assert_eq!(statuses(db).await, ["mail dead", "mail sent", "panel cancelled", "panel sent"]);
    let held = texts(db, "SELECT last_error FROM billing_deliveries WHERE status = 'cancelled'").await;
    assert_eq!(held, ["held in state running by ada: migration"]);
}

async fn unreachable_receiver_ends_as_dead(db: &Db) {
    let types = ["billing.*"];
    let gone =
        endpoint(&json!({ "name": "gone", "kind": "webhook", "types": types, "url": "http://127.0.0.1:9/",
                                 "secrets": [SECRET] }));
    let (checker, _) = low_wallet(db, vec![gone]).await;
    let mut drained = Drained::default();
    for day in 0..12 {
        drained = deliver(&checker, 61 + day * 29 * 60).await;
        if drained.dead > 0 {
            assert_eq!(day, 9);
            break;
        }
    }
    assert_eq!(drained.dead, 1);
    assert_eq!(number(db, "SELECT attempts FROM billing_deliveries").await, 10);
}

/// A process that was killed during a call leaves its claim. The event is sent again when the claim has ended.
async fn claim_of_killed_process_ends(db: &Db) {
    let panel = receiver();
    let (checker, _) = low_wallet(db, vec![webhook(&panel, &["billing.*"], true)]).await;
    let until = match db.backend() {
        DbBackend::Sqlite => minute(70).timestamp_micros().to_string(),
        _ => format!("'{}'", minute(70).to_rfc3339()),
    };
    db.execute(&format!("UPDATE billing_deliveries SET attempts = 1, claimed_until = {until}")).await;
    assert_eq!(deliver(&checker, 69).await, Drained::default());
    assert_eq!(deliver(&checker, 71).await, Drained { sent: 1, ..Drained::default() });
    assert_eq!(number(db, "SELECT attempts FROM billing_deliveries").await, 2);
}

async fn program_receives_events(db: &Db) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let command = |name: &str, script: &str| {
        endpoint(
            &json!({ "name": name, "kind": "command", "types": ["billing.*"], "argv": ["sh", "-c", script],
                          "environment": { "FOLDER": folder.path() } }),
        )
    };
    let (checker, org) = low_wallet(
        db,
        vec![
            command("accepts", "cat > $FOLDER/event"),
            command("later", "exit 75"),
            command("misconfigured", "echo no token >&2; exit 78"),
        ],
    )
    .await;
    assert_eq!(deliver(&checker, 61).await, Drained { sent: 1, failed: 1, dead: 1 });
    let event: Value = read(&folder.path().join("event"));
    assert_eq!(event["data"]["organization"], json!(org));
    assert_eq!(statuses(db).await, ["accepts sent", "later pending", "misconfigured dead"]);
    let error = texts(db, "SELECT last_error FROM billing_deliveries WHERE status = 'dead'").await;
    assert_eq!(error, ["no token"]);
}

fn read(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).expect("it was written")).expect("JSON")
}

/// What mode `watch` recorded is sent once the policy notifies, and then never again.
async fn recorded_notices_are_sent_later(db: &Db) {
    let mails = MailServer::start();
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let org = fleet.wallet("2.50").await;
    fleet.instance(Instance::new(org, plan, hour(0))).await;
    let watching = Checker::with(db, &params(Mode::Watch), vec![mail(&mails, &["billing.wallet.*"])]).await;
    watching.bill_and_check(db, 1).await;
    assert_eq!(number(db, "SELECT count(*) FROM billing_events").await, 0);
    let notifying = Checker::with(db, &params(Mode::Notify), vec![mail(&mails, &["billing.wallet.*"])]).await;
    notifying.check(62).await;
    notifying.check(63).await;
    assert_eq!(deliver(&notifying, 64).await.sent, 1);
    assert_eq!(mails.subjects(), ["Your balance lasts for 24 hours"]);
    assert_eq!(number(db, "SELECT count(*) FROM billing_notices WHERE passed AND level = 72").await, 1);
    // A notice that could not be sent before the policy was changed waits.
    fleet.top_up(org, "-2.30").await;
    notifying.check(65).await;
    let watching = Checker::with(db, &params(Mode::Watch), vec![mail(&mails, &["billing.wallet.*"])]).await;
    assert_eq!(deliver(&watching, 66).await, Drained::default());
    assert_eq!(deliver(&notifying, 68).await.sent, 1);
}

/// A receiver that answers after this time of `clock`.
fn slow(clock: &ManualClock, seconds: u64) -> WebhookReceiver {
    let clock = clock.clone();
    WebhookReceiver::answering(SECRET, move |_| {
        clock.advance(Duration::from_secs(seconds));
        Some(Reply::status(200))
    })
}

/// Customers of whom each has an instance that was created a moment ago.
async fn customers(db: &Db, number: usize, balance: &str) -> Vec<Uuid> {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let now = crate::daemon::now(db).await;
    let mut customers = Vec::new();
    for _ in 0..number {
        let org = fleet.wallet(balance).await;
        fleet.instance(Instance::new(org, plan, now)).await;
        customers.push(org);
    }
    customers
}

/// A run begins no attempt once 30 seconds have passed, so that the next one is on time.
async fn slow_receiver_ends_deliver_run(db: &Db) {
    let clock = ManualClock::at(hour(1));
    let panel = slow(&clock, 31);
    customers(db, 12, "2.40").await;
    let endpoints = vec![webhook(&panel, &["billing.*"], true)];
    let checker = Checker::with(db, &params(Mode::Notify), endpoints.clone()).await;
    let now = crate::daemon::now(db).await;
    checker.check((now - hour(0)).num_minutes()).await;
    let services = checker.services(&params(Mode::Notify), endpoints.clone());
    let job = DeliverJob::new(&services, DeliverParams { endpoint: endpoints });
    // Eight deliveries are claimed at once.
    for (run, expected) in [8, 12, 12].into_iter().enumerate() {
        let ended = job.run(&checker.context(&clock)).await.expect("the run ends");
        assert!(matches!(ended, Outcome::Done { .. }), "{ended:?}");
        assert_eq!(panel.received().len(), expected, "after run {run}");
    }
}

/// The next check is on time as well: a run sends orders for at most 25 seconds.
async fn slow_receiver_ends_prepaid_run(db: &Db) {
    let clock = ManualClock::at(hour(1));
    let panel = slow(&clock, 26);
    let endpoints = vec![webhook(&panel, &["billing.service.*"], true)];
    for org in customers(db, 12, "90.00").await {
        super::prepaid_daemon::suspend(db, org).await;
    }
    let checker = Checker::with(db, &params(Mode::Enforce), endpoints.clone()).await;
    let services = checker.services(&params(Mode::Enforce), endpoints);
    let job = PrepaidJob::new(&services, params(Mode::Enforce));
    for (run, expected) in [8, 12, 12].into_iter().enumerate() {
        job.run(&checker.context(&clock)).await.expect("the run ends");
        assert_eq!(panel.received().len(), expected, "after run {run}");
    }
    assert_eq!(
        number(db, "SELECT count(*) FROM billing_standings WHERE acked_order = order_number").await,
        12
    );
}

on_each_kind!(notices_reach_every_endpoint, failed_delivery_keeps_its_id, final_answers_are_kept);
billing_test_support::on_every_engine!(
    claim_of_killed_process_ends,
    program_receives_events,
    recorded_notices_are_sent_later,
    slow_receiver_ends_deliver_run,
    slow_receiver_ends_prepaid_run,
    unreachable_receiver_ends_as_dead,
);
