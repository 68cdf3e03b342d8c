//! The enforced prepaid policy: instances are suspended after warnings, and resumed after a payment.

use std::{collections::BTreeSet, pin::pin};

use billing_jobs::{
    PrepaidParams,
    prepaid::{Drained, Endpoint, Mode},
    restore_detection,
};
use billing_test_support::{
    Db, Fleet, Instance, MailServer, Plan, Reply, WebhookReceiver, eventually, on_variants,
};
use sea_orm::{ConnectionTrait as _, DbBackend};
use serde_json::json;
use uuid::Uuid;

use super::{
    TEN_CENTS_AN_HOUR, hour, minute, number,
    prepaid::{Checker, standing},
    prepaid_daemon::suspend,
    prepaid_deliveries::{deliver, mail, params, receiver, webhook},
    texts,
};

const ORDERS: [&str; 1] = ["billing.service.*"];
const NOTICES: [&str; 1] = ["billing.wallet.*"];

/// A panel that receives orders, a mail server, and an organization that cannot pay its only instance from the second hour on.
pub(super) struct World<'a> {
    db: &'a Db,
    panel: WebhookReceiver,
    mails: MailServer,
    pub(super) checker: Checker,
    pub(super) org: Uuid,
    instance: Uuid,
}

impl<'a> World<'a> {
    pub(super) async fn new(db: &'a Db, params: &PrepaidParams) -> Self {
        let fleet = Fleet::new(db);
        let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
        let org = fleet.wallet("0.10").await;
        let instance = fleet.instance(Instance::new(org, plan, hour(0)).label("web-1")).await;
        let (panel, mails) = (receiver(), MailServer::start());
        let checker = Checker::with(db, params, endpoints(&panel, &mails)).await;
        Self { db, panel, mails, checker, org, instance }
    }

    async fn enforced(db: &'a Db) -> Self {
        Self::new(db, &params(Mode::Enforce)).await
    }

    /// Bills, checks and delivers at each of these hours.
    pub(super) async fn live(&self, hours: std::ops::RangeInclusive<i64>) {
        for hours in hours {
            self.checker.bill_and_check(self.db, hours).await;
            deliver(&self.checker, 60 * hours + 2).await;
        }
    }

    /// Checks and delivers at these minutes.
    async fn check(&self, minutes: i64) -> Drained {
        self.checker.check(minutes).await;
        deliver(&self.checker, minutes).await
    }

    async fn state(&self) -> String {
        standing(self.db, self.org).await.expect("a standing").0
    }

    async fn set_policy(&self, mode: &str, credit_limit: i64, never_before: Option<i64>) {
        let at = |at: i64| match self.db.backend() {
            DbBackend::Sqlite => minute(at).timestamp_micros().to_string(),
            _ => format!("'{}'", minute(at).to_rfc3339()),
        };
        let until = never_before.map_or_else(|| "NULL".to_owned(), at);
        let org = self.org;
        self.db
            .execute(&format!(
                "DELETE FROM billing_policies;
                 INSERT INTO billing_policies VALUES ('{org}', '{mode}', {credit_limit}, {until}, NULL, 'ada', 'a test', {})",
                at(0)
            ))
            .await;
    }
}

fn endpoints(panel: &WebhookReceiver, mails: &MailServer) -> Vec<Endpoint> {
    vec![webhook(panel, &ORDERS, true), mail(mails, &NOTICES)]
}

async fn suspension_follows_warnings_and_grace(db: &Db) {
    let world = World::enforced(db).await;
    // Exhausted at the check after two hours; the grace period ends a day later.
    world.live(1..=25).await;
    assert_eq!(world.state().await, "exhausted");
    assert_eq!(world.panel.received().len(), 0);
    assert_eq!(
        world.mails.subjects(),
        [
            "Your balance lasts for less than one hour",
            "Your balance is used up",
            "Your servers will be switched off on 2 March 2025 at 02:18 UTC",
        ]
    );
    world.live(26..=26).await;
    assert_eq!(world.state().await, "suspended");
    let order = world.panel.received().remove(0);
    assert_eq!(order.kind(), "billing.service.suspend");
    let data = &order.body["data"];
    assert_eq!((&data["reason"], &data["owed"]), (&json!("insufficient_balance"), &json!("2.50")));
    assert_eq!(data["notices"].as_array().map(Vec::len), Some(3), "{data}");
    assert_eq!(
        data["instances"],
        json!([{ "id": world.instance, "provider_instance_id": world.instance.to_string(), "label": "web-1" }])
    );
    let acknowledged =
        "SELECT count(*) FROM billing_standings WHERE acked_order = order_number AND acked_at IS NOT NULL";
    assert_eq!(number(db, acknowledged).await, 1);
    world.live(27..=30).await;
    assert_eq!(world.panel.received().len(), 1, "an order is sent once");

    // A payment that any system makes is seen by the next check, before the next run of billing.
    Fleet::new(db).top_up(world.org, "5.00").await;
    world.check(60 * 30 + 3).await;
    assert_eq!(world.state().await, "low");
    let orders = world.panel.received();
    assert_eq!(orders[1].kind(), "billing.service.resume");
    let number_of = |order: usize| orders[order].body["data"]["order"].as_i64().expect("a number");
    assert!(number_of(1) > number_of(0), "{orders:?}");
    assert_eq!(world.mails.subjects().last().map(String::as_str), Some("Your servers are switched on again"));
    assert_eq!(number(db, acknowledged).await, 1);
    assert_eq!(texts(db, "SELECT desired FROM billing_standings").await, ["running"]);
}

async fn undelivered_notices_prevent_suspension(db: &Db) {
    let world = World::enforced(db).await;
    world.mails.refuses_all(Some("451 the mailbox is not available"));
    world.live(1..=30).await;
    assert_eq!((world.state().await.as_str(), world.panel.received().len()), ("exhausted", 0));

    // Mail works again: what was not delivered is sent, and the oldest delivered notice must be six hours old.
    world.mails.refuses_all(None);
    // The next attempts follow after at most 24 hours.
    world.live(31..=70).await;
    let delivered = "SELECT count(*) FROM billing_notices WHERE delivered_at IS NOT NULL";
    assert!(number(db, delivered).await >= 2);
    assert_eq!(world.panel.kinds(), ["billing.service.suspend"]);
    let ages = match db.backend() {
        DbBackend::Sqlite => {
            "SELECT (s.since - min(n.delivered_at)) / 1000000 FROM billing_standings s, billing_notices n"
        }
        _ => {
            "SELECT extract(epoch FROM s.since - min(n.delivered_at)) FROM billing_standings s, billing_notices n GROUP BY s.since"
        }
    };
    assert!(number(db, ages).await >= 6 * 3_600);
}

async fn paid_suspension_is_not_sent(db: &Db) {
    let world = World::enforced(db).await;
    world.live(1..=25).await;
    world.checker.bill_and_check(db, 26).await;
    assert_eq!(world.state().await, "suspended");
    Fleet::new(db).top_up(world.org, "5.00").await;

    assert_eq!(deliver(&world.checker, 60 * 26 + 2).await, Drained::default());

    assert_eq!(world.panel.received().len(), 0);
    assert_eq!(number(db, "SELECT count(*) FROM billing_deliveries WHERE status = 'cancelled'").await, 1);
    world.check(60 * 26 + 3).await;
    assert_eq!(world.panel.kinds(), ["billing.service.resume"]);
}

async fn newer_order_replaces_older_one(db: &Db) {
    let world = World::enforced(db).await;
    world.panel.replies([Reply::status(500)]);
    world.live(1..=26).await;
    Fleet::new(db).top_up(world.org, "5.00").await;
    world.check(60 * 26 + 3).await;
    world.live(27..=30).await;
    assert_eq!(world.panel.kinds(), ["billing.service.suspend", "billing.service.resume"]);
    assert_eq!(number(db, "SELECT count(*) FROM billing_deliveries WHERE status = 'superseded'").await, 1);
}

async fn policies_exempt_and_delay(db: &Db) {
    let world = World::enforced(db).await;
    world.set_policy("exempt", 0, None).await;
    world.live(1..=30).await;
    assert_eq!((world.state().await.as_str(), world.panel.received().len()), ("exhausted", 0));
    let notices = world.mails.mails().len();
    assert!(notices >= 2, "an exempt customer is notified");
    world.set_policy("prepaid", 0, Some(60 * 40)).await;
    world.live(31..=39).await;
    assert_eq!(world.panel.received().len(), 0);
    world.live(40..=50).await;
    assert_eq!(world.panel.kinds(), ["billing.service.suspend"]);
    // An exemption resumes, and does not thank for a payment.
    world.set_policy("exempt", 0, None).await;
    let before = world.mails.mails().len();
    world.live(51..=51).await;
    assert_eq!(world.panel.kinds(), ["billing.service.suspend", "billing.service.resume"]);
    assert_eq!(world.mails.mails().len(), before);
}

async fn credit_limit_delays_exhaustion(db: &Db) {
    let world = World::enforced(db).await;
    // Five hours.
    world.set_policy("prepaid", 5_000, None).await;
    world.live(1..=6).await;
    assert_eq!(
        (world.state().await.as_str(), number(db, "SELECT owed FROM billing_standings").await),
        ("exhausted", 5_000)
    );
    let fleet = Fleet::new(db);
    assert_eq!(fleet.balance(world.org).await, 0, "billing never overdraws a wallet");
    world.set_policy("postpaid", 0, None).await;
    let before = world.mails.mails().len();
    world.live(7..=40).await;
    assert_eq!((world.panel.received().len(), world.mails.mails().len()), (0, before));
}

/// After a restore nothing is sent until the operator sends the wanted states again, under greater numbers.
async fn restored_database_waits_for_reconciliation(db: &Db) {
    let world = World::enforced(db).await;
    world.live(1..=26).await;
    let first = world.panel.received().remove(0).body["data"]["order"].clone();
    restore_detection::accept(&world.checker.daemon.db, "ada").await.expect("accepted");
    Fleet::new(db).top_up(world.org, "5.00").await;
    world.live(27..=28).await;
    assert_eq!(world.panel.received().len(), 1, "the policy only watches");

    let now = Some(minute(60 * 28 + 3).timestamp_micros());
    assert_eq!(world.checker.prepaid.reconcile("ada", now).await.expect("reconciled"), 1);
    deliver(&world.checker, 60 * 28 + 3).await;
    assert_eq!(world.panel.received().len(), 1);
    world.check(60 * 28 + 3).await;
    let orders = world.panel.received();
    // The customer has paid, so the repeated suspension is not sent.
    assert_eq!(world.panel.kinds()[1..], ["billing.service.resume"]);
    assert!(orders[1].body["data"]["order"].as_i64() > first.as_i64(), "{orders:?}");
    assert_eq!(world.state().await, "low");
}

async fn outage_of_billing_suspends_no_one(db: &Db) {
    let world = World::enforced(db).await;
    world.live(1..=20).await;
    // Billing does not work for 30 hours, while the policy is checked.
    for hours in 21..=50 {
        world.check(60 * hours + 1).await;
    }
    assert_eq!(world.panel.received().len(), 0);
    world.live(51..=74).await;
    assert_eq!(world.panel.received().len(), 0, "the whole grace period follows the outage");
    world.live(75..=83).await;
    assert_eq!(world.panel.kinds(), ["billing.service.suspend"]);
}

/// What `decided` returns, which begins while a payment of the customer is not committed and may not end before.
async fn during_payment<T: std::fmt::Debug>(world: &World<'_>, decided: impl Future<Output = T>) -> T {
    let payment = world.db.begin().await.expect("a transaction begins");
    let sql = format!("UPDATE wallets SET balance = balance + 5 WHERE organization_id = '{}'", world.org);
    payment.execute_unprepared(&sql).await.expect("the wallet is credited");
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let mut decided = pin!(decided);
    tokio::select! {
        early = &mut decided => panic!("it did not wait for the payment: {early:?}"),
        () = eventually("it waits for the wallet", async || (number(world.db, waiting).await > 0).then_some(())) => {}
    }
    payment.commit().await.expect("the payment is committed");
    decided.await
}

/// A payment that is being committed counts: nothing is decided without the lock of the wallet.
async fn suspension_waits_for_payment_in_progress(db: &Db) {
    let world = World::enforced(db).await;
    world.live(1..=25).await;
    world.checker.bill(db, 26).await;
    let evaluation = during_payment(&world, world.checker.check(60 * 26 + 1)).await;
    assert_eq!((evaluation.suspended, world.state().await.as_str()), (0, "low"));
    deliver(&world.checker, 60 * 26 + 2).await;
    assert_eq!(world.panel.kinds(), [""; 0]);
}

async fn order_waits_for_payment_in_progress(db: &Db) {
    let world = World::enforced(db).await;
    world.live(1..=25).await;
    assert_eq!(world.checker.bill_and_check(db, 26).await.suspended, 1);
    let drained = during_payment(&world, deliver(&world.checker, 60 * 26 + 2)).await;
    assert_eq!((drained, world.panel.kinds()), (Drained::default(), Vec::new()));
}

/// Creates so many further instances of an organization that has one.
pub(super) async fn add_instances(db: &Db, org: Uuid, number: usize) {
    let cast = if db.backend() == DbBackend::Sqlite { "" } else { "::uuid" };
    let ids: Vec<String> = (0..number).map(|_| format!("('{}')", Uuid::new_v4())).collect();
    db.execute(&format!(
        "INSERT INTO vps_instances (id, organization_id, plan_id, provider_instance_id, label, status, created_at)
         SELECT n.column1{cast}, v.organization_id, v.plan_id, n.column1, 'vm', v.status, v.created_at
           FROM (VALUES {}) AS n, (SELECT * FROM vps_instances WHERE organization_id = '{org}' LIMIT 1) AS v",
        ids.join(", ")
    ))
    .await;
}

/// An order of more instances than it lists states that, and the receiver reads them in pages.
async fn large_order_is_read_in_pages(db: &Db) {
    let world = World::enforced(db).await;
    add_instances(db, world.org, 1_499).await;
    suspend(db, world.org).await;
    Fleet::new(db).top_up(world.org, "1000.00").await;
    world.check(61).await;
    let order = world.panel.received().remove(0);
    let data = &order.body["data"];
    assert_eq!(
        (order.kind(), &data["instances"], &data["more"]),
        ("billing.service.resume", &json!(null), &json!(true))
    );
    let organization = world.org.to_string();
    let wanted =
        world.checker.prepaid.wanted_of(&organization).await.expect("it is read").expect("it exists");
    assert_eq!((wanted.order, wanted.instances.more), (data["order"].as_i64(), true));
    let (mut seen, mut after) = (BTreeSet::new(), String::new());
    for expected in [1_000, 500, 0] {
        let page = world.checker.prepaid.instances_of(&organization, &after, 1_000).await;
        let page = page.expect("it is read").expect("it exists");
        assert_eq!(page.len(), expected);
        after = page.last().map_or(after, |last| last.id.clone());
        seen.extend(page.into_iter().map(|instance| instance.id));
    }
    assert_eq!(seen.len(), 1_500);
}

on_variants!(suspension_waits_for_payment_in_progress: g2_role, g3_role);
on_variants!(order_waits_for_payment_in_progress: g2_role, g3_role);
on_each_kind!(suspension_follows_warnings_and_grace, paid_suspension_is_not_sent);
billing_test_support::on_every_engine!(
    credit_limit_delays_exhaustion,
    large_order_is_read_in_pages,
    newer_order_replaces_older_one,
    outage_of_billing_suspends_no_one,
    policies_exempt_and_delay,
    restored_database_waits_for_reconciliation,
    undelivered_notices_prevent_suspension,
);
