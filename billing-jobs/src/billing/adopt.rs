//! From the panel's biller to ours: what is wrong today is told, what drifted is written down, and every machine gets a meter
//! where the panel stopped.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, QueryResult, Value};
use serde::Serialize;
use serde_json::json;

use super::{
    Biller,
    decide::MeterRow,
    handover::{HandoverError, all, begin_alone, entry},
    panel_time, postgres, read, rows,
};
use crate::{
    currency::{Amounts, Currency},
    db::statement,
    money::{Carry, Money, cost},
    period::{Micros, whole_hours},
    price::PriceList,
    record,
    uncharged::Debt,
};

/// Machines, or wallets, that are read or written at a time.
const PAGE: usize = 5_000;
/// Of each kind of finding no more than these are listed.
const LISTED: usize = 100;

/// What an adoption changed, or would, and what it found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// The database's time.
    pub as_of: DateTime<Utc>,
    /// Wallets that there are.
    pub wallets: u64,
    /// Wallets whose balance and ledger were written down, so that the audit measures from here.
    pub baselines: u64,
    /// By how much balances exceed their ledgers, all together.
    pub drift: Amounts,
    /// Machines that there are.
    pub machines: u64,
    /// Machines that got a meter.
    pub meters: u64,
    /// Machines with hours due.
    pub due_machines: u64,
    /// Hours that are due.
    pub due_hours: u64,
    /// What they cost, as far as that can be said.
    pub due_amounts: Amounts,
    /// Instances with hours due that have no price. They are not in `due_amounts`.
    pub due_unpriced: u64,
    /// What is wrong, by kind.
    pub findings: BTreeMap<&'static str, Findings>,
}

/// Findings of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// How many.
    pub count: u64,
    /// The first of them, a sentence each.
    pub listed: Vec<String>,
}

impl Adoption {
    /// What is due.
    #[must_use]
    pub fn due(&self) -> Debt {
        let (hours, amounts) = (self.due_hours, self.due_amounts.clone());
        Debt { instances: self.due_machines, hours, amounts, unpriced: self.due_unpriced }
    }
}

impl Biller {
    /// Takes the fleet over from the panel's biller, or, unless `commit`, only tells what that would change. What was taken over
    /// before stays as it is. What is changed goes on record as the work of `by`.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn adopt(&self, commit: bool, by: &str) -> Result<Adoption, HandoverError> {
        let failed = HandoverError::database("take the fleet over");
        let as_of = self.now().await.map_err(&failed)?;
        let prices = self.prices().await.map_err(&failed)?;
        let txn = begin_alone(&self.db, &self.sql).await?;
        let adoption = Adoption { as_of, ..Adoption::default() };
        let mut work = Work { biller: self, txn: &txn, prices, purses: HashMap::new(), adoption };
        work.everything().await.map_err(&failed)?;
        let adoption = work.adoption;
        if commit {
            let details = json!({
                "after": { "baselines": adoption.baselines, "meters": adoption.meters, "as_of": adoption.as_of },
            });
            record::append(&txn, &entry("adopt", by, details)).await.map_err(&failed)?;
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
    txn: &'a DatabaseTransaction,
    prices: PriceList,
    /// How many wallets each organization has, and the currency of the last.
    purses: HashMap<String, (u32, Currency)>,
    adoption: Adoption,
}

impl Work<'_> {
    async fn everything(&mut self) -> Result<(), DbErr> {
        self.wallets().await?;
        self.plans().await?;
        self.labels().await?;
        let mut after = None;
        loop {
            let values: [Value; 1] = [after.clone().into()];
            let page = self.txn.query_all_raw(statement(self.txn, &self.machines_sql(), values)).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.try_get::<String>("", "id")?);
            self.machines(&page).await?;
        }
    }

    /// Writes down what each wallet holds and what its ledger says, where one wallet and one ledger belong together.
    async fn wallets(&mut self) -> Result<(), DbErr> {
        let rows = all(self.txn, wallets_sql(self.txn.get_database_backend())).await?;
        for row in &rows {
            let currency = Currency::of_column(row.try_get("", "currency")?).unwrap_or(Currency::NONE);
            let (wallets, last) =
                self.purses.entry(row.try_get("", "organization")?).or_insert((0, Currency::NONE));
            (*wallets, *last) = (*wallets + 1, currency);
        }
        let mut fresh = Vec::new();
        for row in &rows {
            let (wallet, organization): (String, String) =
                (row.try_get("", "id")?, row.try_get("", "organization")?);
            let ledger: i64 = row.try_get("", "ledger")?;
            self.adoption.wallets += 1;
            let Some(balance) = row.try_get::<Option<i64>>("", "balance")? else {
                self.find("invalid_balance", format!("wallet {wallet}: the balance is no amount of money"));
                continue;
            };
            if let Err(invalid) = Currency::of_column(row.try_get("", "currency")?) {
                self.find("invalid_currency", format!("wallet {wallet}: {invalid}"));
            }
            let (wallets, currency) = self.purses[&organization];
            if wallets > 1 {
                self.find(
                    "duplicate_wallets",
                    format!("organization {organization} has wallet {wallet} and others; keep one"),
                );
                continue;
            }
            if row.try_get::<bool>("", "opened")? {
                continue;
            }
            if balance != ledger {
                self.adoption.drift.add(currency, Money(balance - ledger));
                let (balance, ledger) = (Money(balance), Money(ledger));
                self.find(
                    "drift",
                    format!("wallet {wallet} holds {balance} {currency}, and its ledger comes to {ledger}"),
                );
            }
            fresh.push(wallet);
        }
        for page in fresh.chunks(PAGE) {
            let ids = serde_json::Value::from(page).to_string();
            let opened = statement(self.txn, &self.biller.sql.insert_openings, [ids.into()]);
            self.adoption.baselines += self.txn.execute_raw(opened).await?.rows_affected();
        }
        Ok(())
    }

    async fn plans(&mut self) -> Result<(), DbErr> {
        let rows = all(self.txn, &self.biller.sql.plans).await?;
        for row in &rows {
            let plan = read::plan(row, self.biller.panel.backups)?;
            let kinds = [None, Some("weekly")];
            let held = kinds.into_iter().find_map(|backups| self.prices.rate(&plan.id, backups).err());
            if let Some(hold) = held {
                self.find("plan_without_price", format!("{} ({})", hold.detail, plan.provider_plan_id));
            }
        }
        Ok(())
    }

    /// The fence tells machines apart by their labels.
    async fn labels(&mut self) -> Result<(), DbErr> {
        if self.txn.get_database_backend() == DbBackend::Sqlite {
            return Ok(());
        }
        let sql =
            "SELECT organization_id::text AS organization, label, count(*) AS machines FROM vps_instances
                    GROUP BY organization_id, label HAVING count(*) > 1 ORDER BY 1, 2";
        for row in all(self.txn, sql).await? {
            let (organization, label): (String, String) =
                (row.try_get("", "organization")?, row.try_get("", "label")?);
            let machines: i64 = row.try_get("", "machines")?;
            let sentence = format!(
                "{machines} machines of organization {organization} are called `{label}`: behind the fence the panel cannot \
                 charge them"
            );
            self.find("duplicate_label", sentence);
        }
        Ok(())
    }

    async fn machines(&mut self, page: &[QueryResult]) -> Result<(), DbErr> {
        let as_of = self.adoption.as_of.timestamp_micros();
        let mut meters = Vec::new();
        for row in page {
            let (id, organization): (String, String) =
                (row.try_get("", "id")?, row.try_get("", "organization")?);
            let name = format!("machine {} ({id})", row.try_get::<String>("", "label")?);
            self.adoption.machines += 1;
            if !self.purses.contains_key(&organization) {
                self.find("no_wallet", format!("{name}: organization {organization} has no wallet"));
            }
            let plan: String = row.try_get("", "plan")?;
            let backups: Option<String> = row.try_get("", "backup_frequency")?;
            let rate = match self.prices.rate(&plan, backups.as_deref()) {
                Ok(rate) => Some(rate.total),
                Err(hold) => {
                    self.find(hold.reason.as_str(), format!("{name}: {}", hold.detail));
                    None
                }
            };
            let watermark: Option<Micros> = row.try_get("", "billed_through")?;
            let (billed, created) = (read::panel_time(row, 0)?, read::panel_time(row, 1)?);
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
                self.adoption.due_machines += 1;
                self.adoption.due_hours += hours.unsigned_abs();
                let amount = rate.and_then(|rate| cost(rate, hours, Carry(0), self.biller.panel.unit));
                let currency =
                    self.purses.get(&organization).map_or(Currency::NONE, |(_, currency)| *currency);
                match amount {
                    Some((amount, _)) => self.adoption.due_amounts.add(currency, amount),
                    None => self.adoption.due_unpriced += 1,
                }
            }
            let limit = i64::from(self.biller.settings.max_catch_up_hours);
            if hours > limit {
                let sentence = format!(
                    "{name}: {hours} hours are due, more than the {limit} that are charged without approval"
                );
                self.find("catch_up_limit", sentence);
            }
            if watermark.is_none() {
                meters.push(MeterRow {
                    instance: id.into(),
                    organization: organization.into(),
                    billed_through_before: None,
                    billed_through: start,
                    carry: Carry(0),
                    rate,
                    rate_changes: None,
                    seen_at: as_of,
                });
            }
        }
        let rows = rows::meters(self.txn.get_database_backend(), rows::NEW_METERS, &meters);
        self.adoption.meters += rows.run(self.txn, &self.biller.sql.insert_meters).await?;
        Ok(())
    }

    fn find(&mut self, kind: &'static str, sentence: String) {
        let findings = self.adoption.findings.entry(kind).or_default();
        findings.count += 1;
        if findings.listed.len() < LISTED {
            findings.listed.push(sentence);
        }
    }

    /// `(id) -> ...`: the next machines after that one, or the first ones.
    fn machines_sql(&self) -> String {
        let sqlite = self.txn.get_database_backend() == DbBackend::Sqlite;
        let (id, uuid, through) = if sqlite {
            ("", "", "m.billed_through".to_owned())
        } else {
            ("::text", "::uuid", postgres::micros("m.billed_through"))
        };
        let text = if sqlite { "" } else { "::text" };
        let backups = if self.biller.panel.backups { "i.backup_frequency" } else { "NULL::text" };
        format!(
            "SELECT i.last_billed_at, i.created_at, i.id{id} AS id, i.organization_id{id} AS organization, i.label AS label, i.plan_id AS plan,
                    {backups} AS backup_frequency, {through} AS billed_through
               FROM vps_instances i LEFT JOIN billing_meters m ON m.instance_id = i.id
              WHERE $1{text} IS NULL OR i.id > $1{text}{uuid}
              ORDER BY i.id LIMIT {PAGE}"
        )
    }
}

/// Each wallet in ten-thousandths, with what its organization's ledger comes to.
fn wallets_sql(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Sqlite => {
            "SELECT w.id AS id, w.organization_id AS organization, w.balance AS balance, w.currency AS currency, coalesce(t.ledger, 0) AS ledger,
                    b.wallet_id IS NOT NULL AS opened
               FROM wallets w
               LEFT JOIN billing_wallets b ON b.wallet_id = w.id
               LEFT JOIN (SELECT organization_id, sum(amount) AS ledger FROM payment_transactions
                           WHERE status = 'completed' GROUP BY organization_id) t
                      ON t.organization_id = w.organization_id
              ORDER BY w.id"
        }
        _ => {
            "SELECT w.id::text AS id, w.organization_id::text AS organization, w.currency AS currency,
                    CASE WHEN abs(w.balance) < 100000000000000 THEN (w.balance * 10000)::bigint END AS balance,
                    coalesce((t.ledger * 10000)::bigint, 0) AS ledger, b.wallet_id IS NOT NULL AS opened
               FROM wallets w
               LEFT JOIN billing_wallets b ON b.wallet_id = w.id
               LEFT JOIN (SELECT organization_id, sum(amount) AS ledger FROM payment_transactions
                           WHERE status = 'completed' GROUP BY organization_id) t
                      ON t.organization_id = w.organization_id
              ORDER BY w.id"
        }
    }
}
