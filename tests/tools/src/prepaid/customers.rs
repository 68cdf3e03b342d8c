//! The customers of a campaign: they buy and delete instances, and pay, mostly when they are about to be suspended.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use billing_test_support::{Db, Fleet, Plan};
use rand::{RngExt as _, rngs::StdRng};
use sea_orm::{ConnectionTrait as _, Statement};
use tokio::{sync::watch, time::sleep};
use uuid::Uuid;

use super::record::{Action, Record};
use crate::faults::{
    fleet::{HOUR, Micros},
    journal::{Action as Payment, instant, money},
};

/// The price of an hour of an instance, in ten-thousandths.
const HOURLY: i64 = 1_000;
/// The same price a month.
const MONTHLY: &str = "73.00";
/// The hours that an instance can be paid for in advance, so that its customer is not concerned any more.
const SUFFICIENT: i64 = 1_000;
/// How many customers there are at the start.
const CUSTOMERS: usize = 40;
const PACE_MS: std::ops::Range<u64> = 80..300;
const RETRY: Duration = Duration::from_millis(50);
/// The number of attempts after which a database counts as dead.
const ATTEMPTS: usize = 2_000;

struct Customer {
    organization: Uuid,
    instances: Vec<Uuid>,
}

/// The fleet of a campaign with what its customers do.
pub(super) struct Customers<'a> {
    db: &'a Db,
    record: Arc<Record>,
    rng: StdRng,
    plan: Uuid,
    all: Vec<Customer>,
    pub(super) payments: u64,
}

impl<'a> Customers<'a> {
    /// Creates a fleet whose wallets last between no hour and two days.
    pub(super) async fn found(db: &'a Db, record: &Arc<Record>, rng: StdRng) -> Self {
        let plan = Fleet::new(db).plan(Plan::monthly(MONTHLY)).await;
        let mut customers = Self { db, record: Arc::clone(record), rng, plan, all: Vec::new(), payments: 0 };
        for _ in 0..CUSTOMERS {
            customers.join().await;
        }
        customers
    }

    pub(super) fn count(&self) -> u64 {
        self.all.len() as u64
    }

    /// Acts until it is stopped.
    pub(super) async fn live(&mut self, stop: &watch::Receiver<bool>) {
        while !*stop.borrow() {
            sleep(Duration::from_millis(self.rng.random_range(PACE_MS))).await;
            match self.rng.random_range(0..20) {
                0..3 => self.join().await,
                3..5 => self.buy().await,
                5..7 => self.delete().await,
                7..11 => self.pay_some("exhausted").await,
                11..14 => self.pay_some("suspended").await,
                14..16 => {
                    let place = self.rng.random_range(0..self.all.len());
                    let hours = self.rng.random_range(1..12);
                    self.pay(place, hours).await;
                }
                _ => {}
            }
        }
    }

    /// Pays for every customer, sufficiently.
    pub(super) async fn pay_all(&mut self) {
        for place in 0..self.all.len() {
            self.pay(place, SUFFICIENT).await;
        }
    }

    /// A customer in this state pays.
    async fn pay_some(&mut self, state: &str) {
        let sql = format!(
            "SELECT CAST(organization_id AS text) AS id FROM billing_standings WHERE state = '{state}'"
        );
        let rows = self.db.admin().query_all_raw(Statement::from_string(self.db.backend(), sql)).await;
        let ids: Vec<String> =
            rows.unwrap_or_default().iter().filter_map(|row| row.try_get("", "id").ok()).collect();
        if ids.is_empty() {
            return;
        }
        let id = &ids[self.rng.random_range(0..ids.len())];
        let Some(place) = self.all.iter().position(|one| one.organization.to_string() == *id) else { return };
        let hours = if self.rng.random_bool(0.6) { SUFFICIENT } else { self.rng.random_range(1..40) };
        self.pay(place, hours).await;
    }

    async fn join(&mut self) {
        let (owner, organization) = (Uuid::new_v4(), Uuid::new_v4());
        let hours = self.rng.random_range(0..48);
        let instances = self.rng.random_range(1..4);
        let balance = money(self.db.backend(), hours * HOURLY * instances + self.rng.random_range(0..HOURLY));
        let now = self.record.clock.earliest();
        let mut customer = Customer { organization, instances: Vec::new() };
        let mut statements = vec![
            format!("INSERT INTO users (id, email, name) VALUES ('{owner}', '{owner}@example.com', 'Owner')"),
            format!(
                "INSERT INTO organizations (id, name, slug, owner_id) VALUES ('{organization}', 'Organization', '{organization}', '{owner}')"
            ),
            format!(
                "INSERT INTO wallets (id, organization_id, balance) VALUES ('{}', '{organization}', {balance})",
                Uuid::new_v4()
            ),
        ];
        for _ in 0..instances {
            statements.push(self.creation(&mut customer, now));
        }
        self.commit(&statements).await;
        self.all.push(customer);
    }

    fn creation(&self, customer: &mut Customer, created: Micros) -> String {
        let (id, plan, organization) = (Uuid::new_v4(), self.plan, customer.organization);
        customer.instances.push(id);
        format!(
            "INSERT INTO vps_instances (id, organization_id, plan_id, provider_instance_id, label, status, created_at)
             VALUES ('{id}', '{organization}', '{plan}', '{id}', 'vm-{id}', 'running', '{}')",
            instant(created)
        )
    }

    async fn buy(&mut self) {
        let place = self.rng.random_range(0..self.all.len());
        let mut customer = Customer { organization: self.all[place].organization, instances: Vec::new() };
        let statement = self.creation(&mut customer, self.record.clock.earliest());
        self.commit(&[statement]).await;
        self.all[place].instances.append(&mut customer.instances);
    }

    async fn delete(&mut self) {
        let place = self.rng.random_range(0..self.all.len());
        let Some(instance) = self.all[place].instances.pop() else { return };
        self.act(place, None, &[format!("DELETE FROM vps_instances WHERE id = '{instance}'")]).await;
    }

    async fn pay(&mut self, place: usize, hours: i64) {
        let Customer { organization, instances } = &self.all[place];
        // Some more, for the instances that are bought later.
        let instances = i64::try_from(instances.len()).expect("a small number");
        let instances = if hours == SUFFICIENT { instances + 5 } else { instances.max(1) };
        let payment = Payment::top_up(self.db.backend(), *organization, hours * instances * HOURLY);
        self.act(place, Some(hours), &payment.statements).await;
        self.payments += 1;
    }

    /// Commits what a customer does, and notes it.
    async fn act(&mut self, place: usize, hours: Option<i64>, statements: &[String]) {
        let organization = self.all[place].organization;
        let before = self.record.clock.earliest();
        self.commit(statements).await;
        let generation = self.record.generation();
        let after = self.record.clock.latest();
        self.record.entries().actions.push(Action {
            organization,
            hours,
            suffices: hours == Some(SUFFICIENT),
            between: (before, after),
            done: Instant::now(),
            generation,
        });
    }

    /// Commits once, as soon as a daemon that was suspended within a transaction permits it.
    async fn commit(&self, statements: &[String]) {
        for _ in 0..ATTEMPTS {
            let attempt = async {
                let transaction = self.db.begin().await?;
                for statement in statements {
                    transaction.execute_unprepared(statement).await?;
                }
                transaction.commit().await
            };
            match attempt.await {
                Ok(()) => return,
                Err(error) => assert!(error.to_string().contains("locked"), "{error}, in:\n{statements:?}"),
            }
            sleep(RETRY).await;
        }
        panic!("the database did not come back for:\n{statements:?}");
    }
}

/// Moves the clock by `time` every quarter of a second until it is stopped.
pub(super) async fn tick(db: &Db, record: &Record, time: Micros, stop: &watch::Receiver<bool>) {
    while !*stop.borrow() {
        sleep(Duration::from_millis(250)).await;
        let now = record.clock.earliest() + time;
        record.clock.announce(now);
        let sql = format!("UPDATE campaign_clock SET now_micros = {now}");
        while db.admin().execute_unprepared(&sql).await.is_err() {
            sleep(RETRY).await;
        }
        record.clock.arrive();
    }
}

/// The time at which the clock of a campaign begins.
pub(super) async fn begin(db: &Db) -> Micros {
    let now = crate::faults::fleet::real_now() - 10_000 * HOUR;
    db.execute(&format!("INSERT INTO campaign_clock (now_micros) VALUES ({now})")).await;
    now
}
