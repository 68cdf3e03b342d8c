//! A process that is killed before any call of the database while it checks the prepaid policy or delivers an event.

use billing_jobs::prepaid::{Endpoint, Mode};
use billing_test_support::{Db, Fleet, Instance, MailServer, Plan, Program, WebhookReceiver, eventually};
use chrono::TimeDelta;
use sea_orm::DbBackend;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    TEN_CENTS_AN_HOUR, hour, minute, number,
    prepaid::Checker,
    prepaid_deliveries::{SECRET, deliver, params, receiver},
};

/// More calls than a check and the deliveries after it make together.
const CALLS: i64 = 60;

/// The receivers, and what was sent to them by processes that were killed.
struct World<'a> {
    db: &'a Db,
    panel: WebhookReceiver,
    mails: MailServer,
    plan: Uuid,
}

/// A customer whose wallet is low, and one who was suspended and has paid.
struct Customers {
    low: Uuid,
    paid: Uuid,
}

impl<'a> World<'a> {
    async fn new(db: &'a Db) -> Self {
        let plan = Fleet::new(db).plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
        Self { db, panel: receiver(), mails: MailServer::start(), plan }
    }

    fn endpoints(&self) -> Value {
        json!([
            { "name": "panel", "kind": "webhook", "types": ["billing.service.*"], "needed": true,
              "url": self.panel.url(), "secrets": [SECRET] },
            { "name": "mail", "kind": "mail", "types": ["billing.wallet.*"], "needed": true,
              "smtp": self.mails.url(), "from": "billing@hosting.example" },
        ])
    }

    async fn checker(&self) -> Checker {
        let endpoints: Vec<Endpoint> = serde_json::from_value(self.endpoints()).expect("endpoints");
        Checker::with(self.db, &params(Mode::Enforce), endpoints).await
    }

    /// Customers who joined an hour before this minute.
    async fn join(&self, at: i64) -> Customers {
        let fleet = Fleet::new(self.db);
        let (low, paid) = (fleet.wallet("2.45").await, fleet.wallet("90.00").await);
        for org in [low, paid] {
            fleet.instance(Instance::new(org, self.plan, minute(at) - TimeDelta::minutes(61))).await;
        }
        let since = match self.db.backend() {
            DbBackend::Sqlite => hour(0).timestamp_micros().to_string(),
            _ => format!("'{}'", hour(0).to_rfc3339()),
        };
        self.db
            .execute(&format!(
                "INSERT INTO billing_standings
                     (organization_id, state, since, watched, episode, level, order_number, desired, evaluated_at)
                 VALUES ('{paid}', 'suspended', {since}, true, 0, -1, 7, 'suspended', {since})"
            ))
            .await;
        Customers { low, paid }
    }

    /// Runs a step in a process that is killed before this call. Returns whether it ended before.
    async fn run(&self, step: &str, at: i64, call: i64) -> bool {
        let program = Program::new(env!("CARGO_BIN_EXE_e2e-tools"))
            .env("BILLING_TOOLS_DAEMON", "prepaid-check")
            .env("DATABASE_URL", &self.db.url)
            .env("ENDPOINTS", &self.endpoints().to_string())
            .env("AS_OF", &minute(at).timestamp_micros().to_string())
            .env("STEP", step)
            .env("ABORT_BEFORE_CALL", &call.to_string());
        let ended = program.run("").await;
        assert!(matches!(ended.code, None | Some(0)), "{}", ended.text());
        ended.code == Some(0)
    }

    /// How many events of each customer are stored, after all or nothing of each decision was.
    async fn events(&self, customers: &Customers) -> [i64; 2] {
        let of = async |org: Uuid, table: &str, condition: &str| {
            number(
                self.db,
                &format!("SELECT count(*) FROM {table} WHERE organization_id = '{org}' {condition}"),
            )
            .await
        };
        let Customers { low, paid } = *customers;
        let notices = of(low, "billing_events", "").await;
        assert_eq!(of(low, "billing_notices", "AND event_id IS NOT NULL").await, notices);
        assert_eq!(of(low, "billing_standings", "").await, notices);
        assert_eq!(of(low, "billing_deliveries", "").await, notices);
        // The order and the mail about it.
        let orders = of(paid, "billing_events", "").await;
        assert_eq!(of(paid, "billing_deliveries", "").await, orders);
        assert_eq!(
            of(paid, "billing_standings", "AND desired = 'running' AND order_number > 7").await * 2,
            orders
        );
        [notices, orders]
    }

    /// Every event was sent, each under one id, and is confirmed.
    async fn check_sent(&self, customers: &Customers) {
        let Customers { low, paid } = *customers;
        let pending = format!(
            "SELECT count(*) FROM billing_deliveries WHERE organization_id IN ('{low}', '{paid}') AND status <> 'sent'"
        );
        assert_eq!(number(self.db, &pending).await, 0);
        let orders = self.panel.received();
        let orders = orders.iter().filter(|order| order.body["data"]["organization"] == json!(paid));
        let mut ids: Vec<&str> = orders.map(|order| order.id.as_str()).collect();
        ids.dedup();
        assert_eq!(ids.len(), 1, "{ids:?}");
        for (org, confirmed) in [
            (low, "billing_notices WHERE delivered_at IS NOT NULL"),
            (paid, "billing_standings WHERE acked_order = order_number"),
        ] {
            let sql = format!("SELECT count(*) FROM {confirmed} AND organization_id = '{org}'");
            assert_eq!(number(self.db, &sql).await, 1);
            let email =
                "SELECT email FROM users WHERE id = (SELECT owner_id FROM organizations WHERE id = '{org}')";
            let email = super::texts(self.db, &email.replace("{org}", &org.to_string())).await.remove(0);
            let mails = self.mails.mails();
            let mut ids: Vec<&str> =
                mails.iter().filter(|mail| mail.to == email).map(|mail| mail.header("Message-ID")).collect();
            ids.dedup();
            assert_eq!(ids.len(), 1, "{ids:?}");
        }
    }
}

async fn check_survives_kill_before_any_call(db: &Db) {
    let world = World::new(db).await;
    for call in 1..CALLS {
        let at = 120 * call;
        let customers = world.join(at).await;
        let is_over = world.run("evaluate", at, call).await;
        let events = world.events(&customers).await;
        // The watched organization is decided first, in a separate transaction.
        let possible = [[0, 0], [0, 2], [1, 2]];
        assert!(possible[if is_over { 2 } else { 0 }..].contains(&events), "before call {call}: {events:?}");
        let checker = world.checker().await;
        checker.check(at + 1).await;
        assert_eq!(world.events(&customers).await, [1, 2], "after call {call}");
        deliver(&checker, at + 2).await;
        world.check_sent(&customers).await;
        if is_over {
            assert!(call > 10, "a check makes more than {call} calls");
            return;
        }
    }
    panic!("a check has no end");
}

async fn delivery_survives_kill_before_any_call(db: &Db) {
    let world = World::new(db).await;
    for call in 1..CALLS {
        let at = 120 * call;
        let customers = world.join(at).await;
        let checker = world.checker().await;
        checker.check(at).await;
        let is_over = world.run("deliver", at + 1, call).await;
        // The claim of the killed process ends after a minute. Its connection may hold a delivery until the server ends it.
        eventually("every event is sent", async || {
            deliver(&checker, at + 3).await;
            let pending = "SELECT count(*) FROM billing_deliveries WHERE status = 'pending'";
            (number(db, pending).await == 0).then_some(())
        })
        .await;
        world.check_sent(&customers).await;
        if is_over {
            assert!(call > 10, "the deliveries make more than {call} calls");
            return;
        }
    }
    panic!("the deliveries have no end");
}

billing_test_support::on_variants!(check_survives_kill_before_any_call: sqlite, g3_role);
billing_test_support::on_variants!(delivery_survives_kill_before_any_call: sqlite, g3_role);
