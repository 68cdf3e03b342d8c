//! The actions of customers and operators during a campaign.

use std::{ops::Range, time::Duration};

use billing_scheduler::{Clock, SystemClock};
use rand::{RngExt as _, rngs::StdRng};
use sea_orm::{ConnectionTrait, DbErr, Statement};
use tokio::{sync::watch, time::sleep};
use uuid::Uuid;

use super::{
    journal::{Action, Deleted, Instance, Journal, PlanLog, Price, instant, money},
    report::Report,
    server::Server,
};
use billing_test_support::Db;

/// Microseconds since 1970.
pub(crate) type Micros = i64;
/// An hour of the fleet.
pub(crate) const HOUR: Micros = 3_600_000_000;

/// The age of the fleet's clock.
const AGO: Micros = 10_000 * HOUR;
/// How far the fleet's clock moves, and how often.
const STEP: Micros = HOUR / 4;
const STEP_EVERY: Duration = Duration::from_millis(250);
const ORGANIZATIONS: usize = 24;
const PLANS: usize = 5;
const WAIT: Duration = Duration::from_millis(100);
/// The number of waits after which a server counts as dead.
const WAITS: usize = 600;

/// The fleet of one campaign.
pub(crate) struct Fleet<'a> {
    server: &'a Server,
    db: &'a Db,
    rng: StdRng,
    pub(crate) journal: Journal,
    pub(crate) report: Report,
}

impl<'a> Fleet<'a> {
    /// Creates a fleet of this many instances, all created within a day before now by its own clock.
    pub(crate) async fn found(server: &'a Server, rng: StdRng, instances: usize) -> Self {
        let mut fleet =
            Self { server, db: &server.db, rng, journal: Journal::default(), report: Report::default() };
        let now = real_now() - AGO;
        fleet.surely(&[format!("INSERT INTO campaign_clock (now_micros) VALUES ({now})")]).await;
        for _ in 0..PLANS {
            fleet.make_plan().await;
        }
        for number in 0..ORGANIZATIONS {
            // Every third wallet is nearly empty.
            let balance = if number % 3 == 0 { 5_000 } else { 10_000_000 };
            fleet.make_organization(balance).await;
        }
        for _ in 0..instances {
            let age = fleet.rng.random_range(0..24 * HOUR);
            fleet.make_instance(now - age).await;
        }
        fleet.report = Report::default();
        fleet
    }

    /// Acts until it is stopped; an action that has begun is finished.
    pub(crate) async fn live(&mut self, pace_ms: Range<u64>, stop: &watch::Receiver<bool>) {
        while !*stop.borrow() {
            let wait = self.rng.random_range(pace_ms.clone());
            sleep(Duration::from_millis(wait)).await;
            match self.rng.random_range(0..20) {
                0..10 => self.top_up().await,
                10 => self.change_price().await,
                11..14 => {
                    let now = self.now().await;
                    self.make_instance(now).await;
                }
                14..16 => self.delete_instance().await,
                16 => self.set_anchor_back().await,
                _ => {}
            }
        }
    }

    async fn make_plan(&mut self) {
        let (id, cents) = (Uuid::new_v4(), self.rng.random_range(500..8_000));
        let price = self.cents(cents);
        let began = real_now();
        self.surely(&[format!(
            "INSERT INTO vps_plans (id, name, provider_plan_id, base_price, markup_price) VALUES ('{id}', 'Plan', '{id}', {price}, 0)"
        )])
        .await;
        self.journal.plans.push(PlanLog { id, prices: vec![Price { cents, since: (began, real_now()) }] });
    }

    async fn make_organization(&mut self, balance: i64) {
        let (owner, id) = (Uuid::new_v4(), Uuid::new_v4());
        let money = money(self.db.backend(), balance);
        self.surely(&[
            format!("INSERT INTO users (id, email, name) VALUES ('{owner}', '{owner}@example.com', 'Owner')"),
            format!("INSERT INTO organizations (id, name, slug, owner_id) VALUES ('{id}', 'Organization', '{id}', '{owner}')"),
            format!("INSERT INTO wallets (id, organization_id, balance) VALUES ('{}', '{id}', {money})", Uuid::new_v4()),
        ])
        .await;
        self.journal.wallets.insert(id, balance);
    }

    async fn make_instance(&mut self, created: Micros) {
        let plan = self.rng.random_range(0..self.journal.plans.len());
        let organization = self.any_organization();
        let is_marked = self.rng.random_bool(0.5);
        let action = self.journal.creation(organization, plan, created, is_marked);
        self.act(action).await;
        self.report.creations += 1;
    }

    async fn top_up(&mut self) {
        let anyone = self.any_organization();
        // Preferably while the panel debits: it must not write back what the wallet held before.
        let organization = self.server.read_by_panel().unwrap_or(anyone);
        let amount = self.rng.random_range(500..20_000);
        self.act(Action::top_up(self.db.backend(), organization, amount)).await;
        self.report.top_ups += 1;
    }

    async fn change_price(&mut self) {
        let plan = self.rng.random_range(0..self.journal.plans.len());
        let cents = self.rng.random_range(500..8_000);
        let (id, price) = (self.journal.plans[plan].id, self.cents(cents));
        let began = real_now();
        self.surely(&[format!("UPDATE vps_plans SET base_price = {price} WHERE id = '{id}'")]).await;
        self.journal.plans[plan].prices.push(Price { cents, since: (began, real_now()) });
        self.report.plan_changes += 1;
    }

    async fn delete_instance(&mut self) {
        let Some(id) = self.any_instance() else { return };
        // The panel does not handle an instance that is deleted between its two transactions.
        let _calm = self.server.calm.lock().await;
        let begun = real_now();
        self.surely(&[format!("DELETE FROM vps_instances WHERE id = '{id}'")]).await;
        let by = self.now().await;
        self.instance(id).deleted = Some(Deleted { begun, by });
        self.report.deletions += 1;
    }

    /// As after a restore of the panel's table: billed hours seem unbilled.
    async fn set_anchor_back(&mut self) {
        let Some(id) = self.any_instance() else { return };
        let _calm = self.server.calm.lock().await;
        let created = instant(self.instance(id).created);
        self.surely(&[format!("UPDATE vps_instances SET last_billed_at = '{created}' WHERE id = '{id}'")])
            .await;
        self.report.set_backs += 1;
    }

    fn any_organization(&mut self) -> Uuid {
        let number = self.rng.random_range(0..self.journal.wallets.len());
        *self.journal.wallets.keys().nth(number).expect("the number is below the count")
    }

    fn any_instance(&mut self) -> Option<Uuid> {
        let there: Vec<Uuid> = self
            .journal
            .instances
            .iter()
            .filter(|(_, instance)| instance.deleted.is_none())
            .map(|(id, _)| *id)
            .collect();
        // A fleet that is too small shows nothing.
        (there.len() > 20).then(|| there[self.rng.random_range(0..there.len())])
    }

    fn instance(&mut self, id: Uuid) -> &mut Instance {
        self.journal.instances.get_mut(&id).expect("an instance of ours")
    }

    /// The time by the fleet's clock.
    async fn now(&self) -> Micros {
        now(self.db).await
    }

    /// Performs an action exactly once, and notes it.
    async fn act(&mut self, action: Action) {
        self.surely(&action.statements).await;
        self.journal.note(action.entry);
    }

    /// Executes the statements in one transaction, exactly once, with retries for failures of the database.
    async fn surely(&self, statements: &[String]) {
        let mark = Uuid::new_v4();
        for _ in 0..WAITS {
            match self.attempt(mark, statements).await {
                Ok(()) => return,
                Err(error) => {
                    assert!(!is_refusal(&error), "{error}, in:\n{}", statements.join("\n"));
                }
            }
            sleep(WAIT).await;
            // The response to the COMMIT may have been lost. A mark that is still to be committed stops the next attempt.
            let marked = format!("SELECT 1 FROM campaign_marks WHERE id = '{mark}'");
            let marked = Statement::from_string(self.db.backend(), marked);
            if let Ok(Some(_)) = self.db.admin().query_one_raw(marked).await {
                return;
            }
        }
        panic!("the database did not come back for:\n{}", statements.join("\n"));
    }

    async fn attempt(&self, mark: Uuid, statements: &[String]) -> Result<(), DbErr> {
        let transaction = self.db.begin().await?;
        transaction.execute_unprepared(&format!("INSERT INTO campaign_marks VALUES ('{mark}')")).await?;
        for statement in statements {
            transaction.execute_unprepared(statement).await?;
        }
        transaction.commit().await
    }

    fn cents(&self, cents: i64) -> String {
        money(self.db.backend(), cents * 100)
    }
}

/// Moves the fleet's clock on until it is stopped.
pub(crate) async fn tick(server: &Server, stop: &watch::Receiver<bool>) {
    let sql = format!("UPDATE campaign_clock SET now_micros = now_micros + {STEP}");
    while !*stop.borrow() {
        sleep(STEP_EVERY).await;
        // Between the panel's two transactions there are milliseconds, and not hours.
        let _calm = server.calm.lock().await;
        // A step that failed is a longer hour.
        let _ = server.db.admin().execute_unprepared(&sql).await;
    }
}

/// Advances the clock by a few minutes, so that no retry waits any more; returns the time.
pub(crate) async fn rest(db: &Db) -> Micros {
    db.execute(&format!("UPDATE campaign_clock SET now_micros = now_micros + {}", HOUR / 4)).await;
    now(db).await
}

/// The time by the fleet's clock, once the database answers.
pub(crate) async fn now(db: &Db) -> Micros {
    let query = Statement::from_string(db.backend(), "SELECT now_micros FROM campaign_clock");
    for _ in 0..WAITS {
        if let Ok(Some(row)) = db.admin().query_one_raw(query.clone()).await {
            return row.try_get("", "now_micros").expect("a clock shows a number");
        }
        sleep(WAIT).await;
    }
    panic!("the database did not come back");
}

/// The time by the clock of this host, which is the database's and the daemons' as well.
pub(crate) fn real_now() -> Micros {
    SystemClock.now().timestamp_micros()
}

/// Whether the statement itself is wrong: a fault of the campaign. A mark that exists already is not.
fn is_refusal(error: &DbErr) -> bool {
    billing_store::classify(error) == billing_store::ErrorClass::Rows
        && !error.to_string().contains("campaign_marks")
}
