//! The campaign's own record of what customers did, outside of the database, and what their actions write.

use std::collections::BTreeMap;

use chrono::DateTime;
use sea_orm::DbBackend;
use uuid::Uuid;

use super::fleet::Micros;

/// The campaign's own record of its actions.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// Each organization's wallet: its first balance and its payments, in ten-thousandths.
    pub(crate) wallets: BTreeMap<Uuid, i64>,
    /// Each plan's prices, oldest first.
    pub(crate) plans: Vec<PlanLog>,
    pub(crate) instances: BTreeMap<Uuid, Instance>,
}

#[derive(Debug)]
pub(crate) struct PlanLog {
    pub(crate) id: Uuid,
    pub(crate) prices: Vec<Price>,
}

/// A plan's monthly price.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Price {
    pub(crate) cents: i64,
    /// The range of real time in which it came into force.
    pub(crate) since: (Micros, Micros),
}

#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) organization: Uuid,
    pub(crate) plan: usize,
    pub(crate) label: String,
    /// By the fleet's clock.
    pub(crate) created: Micros,
    pub(crate) deleted: Option<Deleted>,
}

/// When an instance was deleted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deleted {
    /// The last real time at which it existed for certain.
    pub(crate) begun: Micros,
    /// The time of the fleet's clock by which it was deleted.
    pub(crate) by: Micros,
}

/// An action of a customer: the statements that perform it, and what the journal notes about it.
pub(crate) struct Action {
    pub(crate) statements: Vec<String>,
    pub(crate) entry: Entry,
}

/// What an action changes.
pub(crate) enum Entry {
    Created(Uuid, Instance),
    /// The organization and the amount in ten-thousandths.
    Paid(Uuid, i64),
}

impl Journal {
    /// Notes an action that was committed.
    pub(crate) fn note(&mut self, entry: Entry) {
        match entry {
            Entry::Created(id, instance) => {
                self.instances.insert(id, instance);
            }
            Entry::Paid(organization, amount) => {
                *self.wallets.entry(organization).or_default() += amount;
            }
        }
    }

    /// The creation of an instance on the plan with this number. The panel marks the time of creation as billed, for its own charge of
    /// the first hour; an older panel did not.
    pub(crate) fn creation(
        &self,
        organization: Uuid,
        plan: usize,
        created: Micros,
        is_marked: bool,
    ) -> Action {
        let id = Uuid::new_v4();
        let label = format!("vm-{id}");
        let created_at = instant(created);
        let billed = if is_marked { format!("'{created_at}'") } else { "NULL".to_owned() };
        let plan_id = self.plans[plan].id;
        let statement = format!(
            "INSERT INTO vps_instances (id, organization_id, plan_id, provider_instance_id, label, status, created_at, last_billed_at)
             VALUES ('{id}', '{organization}', '{plan_id}', '{id}', '{label}', 'running', '{created_at}', {billed})"
        );
        let instance = Instance { organization, plan, label, created, deleted: None };
        Action { statements: vec![statement], entry: Entry::Created(id, instance) }
    }
}

impl Action {
    /// A payment of this many ten-thousandths.
    pub(crate) fn top_up(backend: DbBackend, organization: Uuid, amount: i64) -> Self {
        let money = money(backend, amount);
        let statements = vec![
            format!("UPDATE wallets SET balance = balance + {money} WHERE organization_id = '{organization}'"),
            format!(
                "INSERT INTO payment_transactions (id, organization_id, amount, payment_method, payment_provider, status, description)
                 VALUES ('{}', '{organization}', {money}, 'paypal', 'paypal', 'completed', 'Wallet top-up')",
                Uuid::new_v4()
            ),
        ];
        Self { statements, entry: Entry::Paid(organization, amount) }
    }
}

/// An amount in ten-thousandths as the database writes it.
pub(crate) fn money(backend: DbBackend, ten_thousandths: i64) -> String {
    match backend {
        DbBackend::Sqlite => ten_thousandths.to_string(),
        _ => format!("{ten_thousandths} * 0.0001"),
    }
}

/// An instant as the panel's tables write it.
pub(crate) fn instant(micros: Micros) -> String {
    let instant = DateTime::from_timestamp_micros(micros).expect("a time of a campaign");
    instant.format("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}
