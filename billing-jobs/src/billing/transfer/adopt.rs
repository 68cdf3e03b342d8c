//! From the built-in biller of the panel to this one: reports what is wrong today, records what drifted, and gives every instance a
//! meter where the panel stopped.

use std::collections::HashMap;

use billing_store::Transaction;
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult, Value};
use serde::Serialize;
use serde_json::json;

use super::{HandoverError, all, begin_alone};
use crate::{
    BILLING_JOB,
    billing::{
        Biller, FindingsByKind,
        decide::rates_json,
        id::{self, Id},
        model::MeterRow,
        panel_time::{self, PanelTime},
        read, seen_rates,
        sql::{is_amount, micros, rows},
    },
    currency::{Amounts, Currency},
    hold::Hold,
    money::{Carry, Money},
    period::{Micros, Rates, whole_hours},
    price::{DailyBackupFactor, Plan, PriceKey, PriceList},
    uncharged::Debt,
};
use billing_store::{
    audit_log::{self, AuditEvent},
    columns::{self, Unreadable, optional_text, text},
    statement,
};

/// How many instances are read at a time.
const PAGE: usize = 5_000;
/// How many wallets are opened at a time. Each time the whole wallet ledger is read.
const OPENED_AT_ONCE: usize = 50_000;
/// Of each kind of finding no more than these are listed.
const LISTED: usize = 100;

/// What an adoption changed, or would, and what it found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// The database's time.
    pub as_of: DateTime<Utc>,
    /// The number of wallets.
    pub wallets: u64,
    /// Wallets whose balance and ledger were recorded, so that the audit measures from here.
    pub baselines: u64,
    /// By how much balances exceed their ledgers, all together.
    pub drift: Amounts,
    /// The number of instances.
    pub instances: u64,
    /// Instances that got a meter.
    pub meters: u64,
    /// Instances with hours due.
    pub due_instances: u64,
    /// Hours that are due.
    pub due_hours: u64,
    /// Their price, as far as it is known.
    pub due_amounts: Amounts,
    /// Instances with hours due that have no price. They are not in `due_amounts`.
    pub due_unpriced: u64,
    /// The instances that the panel would charge at another price.
    pub price_differences: Vec<PriceDifference>,
    /// What is wrong, by kind.
    pub findings: FindingsByKind,
}

/// An instance with another price than by the rule of the panel's own biller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PriceDifference {
    /// The id of the instance.
    pub instance: String,
    /// The name that the customer gave it.
    pub label: String,
    /// The organization that pays for it.
    pub organization: String,
    /// Its price per hour, as decimal text.
    pub hourly_price: String,
    /// Its price per hour by the rule of the panel.
    pub panel_hourly_price: String,
}

impl Adoption {
    /// The hours and amounts that the panel has not charged.
    #[must_use]
    pub fn due(&self) -> Debt {
        let (hours, amounts) = (self.due_hours, self.due_amounts.clone());
        Debt { instances: self.due_instances, hours, amounts, unpriced: self.due_unpriced }
    }
}

impl Biller {
    /// Takes the fleet over from the panel's biller, or, unless `commit`, only reports what that would change. What was taken over
    /// before stays as it is. The audit log records the change as the work of `by`.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn adopt(&self, commit: bool, by: &str) -> Result<Adoption, HandoverError> {
        let failed = HandoverError::database("take the fleet over");
        let as_of = self.now().await.map_err(&failed)?;
        let plans = self.plans().await.map_err(&failed)?;
        let price_list = |factor| PriceList::new(plans.clone(), factor);
        let (seen, unreadable) = seen_rates::read(&self.db, &self.sql).await.map_err(&failed)?;
        let prices = price_list(self.daily_backup_factor()).with_seen(seen);
        let panel_prices = price_list(DailyBackupFactor::of(self.panel.generation));
        let txn = begin_alone(&self.db, &self.sql).await?;
        let adoption = Adoption { as_of, ..Adoption::default() };
        let wallets_of = HashMap::new();
        let mut work =
            Work { biller: self, txn: &txn, plans: &plans, prices, panel_prices, wallets_of, adoption };
        for problem in unreadable {
            work.find("unreadable", problem.to_string());
        }
        work.everything().await.map_err(&failed)?;
        let (adoption, new) = (work.adoption, work.prices.unseen(as_of.timestamp_micros()));
        if commit {
            seen_rates::insert(&txn, &self.sql, &new).await.map_err(&failed)?;
            let details = json!({
                "after": { "baselines": adoption.baselines, "meters": adoption.meters, "as_of": adoption.as_of },
            });
            audit_log::append(&txn, &AuditEvent::new(by, "adopt", BILLING_JOB, details)).await.map_err(&failed)?;
            txn.commit().await
        } else {
            txn.rollback().await
        }
        .map_err(&failed)?;
        Ok(adoption)
    }
}

struct Work<'a> {
    biller: &'a Biller,
    txn: &'a Transaction,
    plans: &'a [Plan],
    prices: PriceList,
    /// What the panel's own biller would charge.
    panel_prices: PriceList,
    /// How many wallets each organization has, and the currency of the last.
    wallets_of: HashMap<Id, (u32, Currency)>,
    adoption: Adoption,
}

impl Work<'_> {
    async fn everything(&mut self) -> Result<(), DbErr> {
        self.wallets().await?;
        self.plans();
        self.labels().await?;
        if self.txn.get_database_backend() != DbBackend::Sqlite {
            // A page of instances finds its meters by their key.
            self.txn.execute_unprepared("SET LOCAL enable_nestloop = on").await?;
        }
        let mut after: Option<Value> = None;
        loop {
            let sql = self.instances_sql(after.is_some());
            let page = self.txn.query_all_raw(statement(self.txn, &sql, after)).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.try_get::<Vec<u8>>("", "place")?.into());
            self.instances(&page).await?;
        }
    }

    /// Records the balance and the ledger of each wallet, where an organization has one wallet.
    async fn wallets(&mut self) -> Result<(), DbErr> {
        let rows = all(self.txn, &wallets_sql(self.txn.get_database_backend())).await?;
        self.adoption.wallets = rows.len() as u64;
        let mut wallets = Vec::with_capacity(rows.len());
        for row in &rows {
            let Some(wallet) = read::wallet(row) else {
                let sentence = format!("wallet {}: its organization cannot be read", columns::lossy(row, 6));
                self.find("unreadable", sentence);
                continue;
            };
            let (count, currency) =
                self.wallets_of.entry(wallet.organization.clone()).or_insert((0, Currency::NONE));
            (*count, *currency) = (*count + 1, wallet.currency.clone().unwrap_or(Currency::NONE));
            wallets.push((wallet, row.try_get_by_index::<i64>(5)?));
        }
        let mut fresh = Vec::new();
        for (wallet, ledger) in wallets {
            let balance = match wallet.balance {
                Ok(balance) => balance,
                Err(Hold { reason, detail }) => {
                    self.find(reason.as_str(), format!("organization {}: {detail}", wallet.organization));
                    continue;
                }
            };
            if let Err(invalid) = &wallet.currency {
                self.find("invalid_currency", format!("wallet {}: {invalid}", wallet.id));
            }
            let (wallet, organization, opened) = (wallet.id, wallet.organization, wallet.opened);
            let (wallets, currency) = self.wallets_of[&organization];
            if wallets > 1 {
                self.find(
                    "duplicate_wallets",
                    format!("organization {organization} has wallet {wallet} and others; keep one"),
                );
                continue;
            }
            if opened {
                continue;
            }
            if balance.0 != ledger {
                self.adoption.drift.add(currency, Money(balance.0.saturating_sub(ledger)));
                let ledger = Money(ledger);
                self.find(
                    "drift",
                    format!("wallet {wallet} holds {balance} {currency}, and its ledger adds up to {ledger}"),
                );
            }
            fresh.push(wallet);
        }
        for page in fresh.chunks(OPENED_AT_ONCE) {
            let opened = statement(self.txn, &self.biller.sql.insert_all_openings, [id::list(page)]);
            self.adoption.baselines += self.txn.execute_raw(opened).await?.rows_affected();
        }
        Ok(())
    }

    fn plans(&mut self) {
        for plan in self.plans {
            let key = PriceKey { plan_id: &plan.id, provider_id: None, backup_frequency: None };
            let kinds = [key, PriceKey { backup_frequency: Some("weekly"), ..key }];
            let held = kinds.into_iter().find_map(|key| self.prices.rate(key).err());
            if let Some(hold) = held {
                self.find("plan_without_price", format!("{} ({})", hold.detail, plan.provider_plan_id));
            }
        }
    }

    /// The panel guard identifies an instance by its label.
    async fn labels(&mut self) -> Result<(), DbErr> {
        if self.txn.get_database_backend() == DbBackend::Sqlite {
            return Ok(());
        }
        let sql =
            "SELECT organization_id::text AS organization, label, count(*) AS instances FROM vps_instances
                     WHERE organization_id IS NOT NULL AND label IS NOT NULL
                    GROUP BY organization_id, label HAVING count(*) > 1 ORDER BY 1, 2";
        for row in all(self.txn, sql).await? {
            let (organization, label) = (columns::lossy(&row, "organization"), columns::lossy(&row, "label"));
            let instances: i64 = row.try_get("", "instances")?;
            let sentence = format!(
                "{instances} instances of organization {organization} are called `{label}`: behind the panel guard the panel cannot \
                 charge them"
            );
            self.find("duplicate_label", sentence);
        }
        Ok(())
    }

    async fn instances(&mut self, page: &[QueryResult]) -> Result<(), DbErr> {
        let as_of = self.adoption.as_of.timestamp_micros();
        let mut meters = Vec::new();
        for row in page {
            self.adoption.instances += 1;
            let instance = match found_instance(row) {
                Ok(instance) => instance,
                Err(unreadable) => {
                    let id = columns::lossy(row, "id_text");
                    self.find("unreadable", format!("instance {id}: {unreadable}"));
                    continue;
                }
            };
            let name = format!("instance {} ({})", instance.label, instance.id);
            if !self.wallets_of.contains_key(&instance.organization) {
                self.find(
                    "no_wallet",
                    format!("{name}: organization {} has no wallet", instance.organization),
                );
            }
            let rates = self.rates_of(&instance, &name);
            let FoundInstance { id, organization, billed, created, .. } = instance;
            let watermark: Option<Micros> = row.try_get("", "billed_through")?;
            let start = match panel_time::start(&billed, &created, watermark, as_of) {
                Ok(start) => start,
                Err(hold) => {
                    self.find(hold.reason.as_str(), format!("{name}: {}", hold.detail));
                    continue;
                }
            };
            if watermark.is_none() && billed.at().is_some_and(|billed| billed < start) {
                let sentence =
                    format!("{name}: no hour before created_at is charged; last_billed_at is {billed}");
                self.find("billed_before_created", sentence);
            }
            let hours = whole_hours(start, as_of);
            if hours > 0 {
                self.count_due(&organization, rates.as_ref(), start, hours);
            }
            let limit = i64::from(self.biller.settings.max_catch_up_hours);
            if hours > limit {
                let sentence = format!(
                    "{name}: {hours} hours are due, more than the {limit} that are charged without approval"
                );
                self.find("catch_up_limit", sentence);
            }
            if watermark.is_none() {
                let rates = rates.map(|mut rates| {
                    rates.forget_before(start);
                    rates
                });
                meters.push(MeterRow {
                    instance: id,
                    organization,
                    billed_through_before: None,
                    billed_through: start,
                    carry: Carry(0),
                    rate: rates.as_ref().map(|rates| rates.first),
                    rate_changes: rates.as_ref().and_then(rates_json),
                    seen_at: as_of,
                });
            }
        }
        let rows = rows::meters(self.txn.get_database_backend(), rows::NEW_METERS, &meters);
        for statement in rows.statements(&self.biller.sql.insert_meters) {
            self.adoption.meters += self.txn.execute_raw(statement).await?.rows_affected();
        }
        Ok(())
    }

    /// The rates of a instance since its plan was first seen; none if it has no price now.
    fn rates_of(&mut self, instance: &FoundInstance, name: &str) -> Option<Rates> {
        let FoundInstance { id, organization, label, plan, provider, backups, .. } = instance;
        let key = PriceKey {
            plan_id: plan,
            provider_id: provider.as_deref(),
            backup_frequency: backups.as_deref(),
        };
        let rates = match self.prices.rates(key, self.adoption.as_of.timestamp_micros()) {
            Ok(rates) => rates,
            Err(hold) => {
                self.find(hold.reason.as_str(), format!("{name}: {}", hold.detail));
                return None;
            }
        };
        let rate = rates.latest();
        if let Ok(by_panel) = self.panel_prices.rate(key)
            && by_panel != rate
        {
            self.adoption.price_differences.push(PriceDifference {
                instance: id.to_string(),
                label: label.clone(),
                organization: organization.to_string(),
                hourly_price: rate.total.per_hour(6),
                panel_hourly_price: by_panel.total.per_hour(6),
            });
        }
        Some(rates)
    }

    fn count_due(&mut self, organization: &Id, rates: Option<&Rates>, start: Micros, hours: i64) {
        self.adoption.due_instances += 1;
        self.adoption.due_hours += hours.unsigned_abs();
        let unit = self.biller.panel.unit;
        let currency = self.wallets_of.get(organization).map_or(Currency::NONE, |(_, currency)| *currency);
        match rates.and_then(|rates| rates.cost(start, hours, Carry(0), unit)) {
            Some(amount) => self.adoption.due_amounts.add(currency, amount),
            None => self.adoption.due_unpriced += 1,
        }
    }

    fn find(&mut self, kind: &'static str, sentence: String) {
        self.adoption.findings.entry(kind.to_owned()).or_default().add(sentence, LISTED);
    }

    /// `(id) -> ...`: the next instances after that one; `() -> ...`: the first ones.
    fn instances_sql(&self, is_next: bool) -> String {
        let sqlite = self.txn.get_database_backend() == DbBackend::Sqlite;
        // The place of a instance among the others, and what is behind one: SQLite takes any bytes for text.
        let (place, behind, id_text, through) = if sqlite {
            ("CAST(i.id AS BLOB)", "i.id > CAST($1 AS TEXT)", "i.id", "m.billed_through".to_owned())
        } else {
            (
                "uuid_send(i.id)",
                "i.id > encode($1, 'hex')::uuid",
                "i.id::text",
                micros(DbBackend::Postgres, "m.billed_through"),
            )
        };
        let condition = if is_next { format!("WHERE {behind}") } else { String::new() };
        let provider = match self.biller.panel.providers {
            true if sqlite => "i.provider_id",
            true => "i.provider_id::text",
            false => "NULL::text",
        };
        let backups = if self.biller.panel.backups { "i.backup_frequency" } else { "NULL::text" };
        format!(
            "SELECT i.last_billed_at, i.created_at, {place} AS place, {id_text} AS id_text, i.id AS id,
                    i.organization_id AS organization, i.label AS label, i.plan_id AS plan,
                    {backups} AS backup_frequency, {provider} AS provider_id, {through} AS billed_through
               FROM vps_instances i LEFT JOIN billing_meters m ON m.instance_id = i.id
              {condition}
              ORDER BY i.id LIMIT {PAGE}"
        )
    }
}

/// What is read of a instance.
struct FoundInstance {
    id: Id,
    organization: Id,
    label: String,
    plan: String,
    provider: Option<String>,
    backups: Option<String>,
    billed: PanelTime,
    created: PanelTime,
}

fn found_instance(row: &QueryResult) -> Result<FoundInstance, Unreadable> {
    Ok(FoundInstance {
        id: read::id(row, "id", "vps_instances.id")?,
        organization: read::id(row, "organization", "vps_instances.organization_id")?,
        label: text(row, "label", "vps_instances.label")?,
        plan: text(row, "plan", "vps_instances.plan_id")?,
        provider: optional_text(row, "provider_id", "vps_instances.provider_id")?,
        backups: optional_text(row, "backup_frequency", "vps_instances.backup_frequency")?,
        billed: read::panel_time(row, 0, "vps_instances.last_billed_at")?,
        created: read::panel_time(row, 1, "vps_instances.created_at")?,
    })
}

/// Each wallet as a run reads it, with the sum of its organization's ledger, and its id as text.
fn wallets_sql(backend: DbBackend) -> String {
    let (balance, id_text, sum) = match backend {
        DbBackend::Sqlite => ("w.balance", "w.id", "sum(amount)"),
        _ => ("w.balance::text", "w.id::text", "sum(amount * 10000)::bigint"),
    };
    let is_amount = is_amount(backend, "amount");
    format!(
        "SELECT w.id, w.organization_id, {balance}, w.currency, b.wallet_id IS NOT NULL,
                coalesce(t.ledger, 0), {id_text}
           FROM wallets w
           LEFT JOIN billing_wallet_openings b ON b.wallet_id = w.id
           LEFT JOIN (SELECT organization_id, {sum} AS ledger FROM payment_transactions
                       WHERE status = 'completed' AND {is_amount} GROUP BY organization_id) t
                  ON t.organization_id = w.organization_id
          ORDER BY w.id"
    )
}
