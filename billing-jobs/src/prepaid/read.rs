//! Reads the facts of many organizations with one statement. A value that cannot be read affects its organization alone.

use billing_store::{StatementLimit, Transaction, begin_read, columns, query_fleet, query_one, statement};
use sea_orm::{ConnectionTrait as _, DbBackend, DbErr, QueryResult, Statement, Value};
use serde_json::Value as Json;
use tokio::sync::OnceCell;

use super::{
    Prepaid,
    assessment::{Assessment, Stored},
    decide::{Desired, Facts, Given, Notice, Standing, State},
    rules::{Level, Mode, Policy, PolicyMode, micros},
    runway::Account,
};
use crate::{
    BILLING_JOB,
    currency::Currency,
    money::{Carry, HourlyRate, Money, Rate},
    period::{Change, Micros, Rates, whole_hours},
    price::{PriceKey, PriceList},
    restore_detection::ACCEPTED,
};

/// What is read once for all organizations.
#[derive(Debug)]
pub(super) struct Context {
    /// The present, by the database's clock.
    pub(super) now: Micros,
    /// The end of the last good run of billing.
    pub(super) last_run: Option<Micros>,
    /// Since when billing has worked without an outage; none if it does not work.
    pub(super) billing_ok_since: Option<Micros>,
    /// The time that replaces that of the database.
    pub(super) as_of: Option<Micros>,
    /// Whether a delivery is due.
    pub(super) is_due: bool,
    /// Whether a restored database was accepted and not reconciled.
    is_restored: bool,
    prices: OnceCell<PriceList>,
}

/// Which organizations are read.
#[derive(Clone, Debug)]
pub(super) enum Selection {
    /// Those that are watched, after this one.
    Watched(String),
    /// All of them, after this one.
    All(String),
    /// Those with these ids.
    Listed(Vec<String>),
}

/// The action in the audit log after which the policy is in force again on a restored database.
pub(super) const RECONCILED: &str = "reconcile";
/// How many organizations are read at a time.
pub(super) const PAGE: i64 = 2_000;
/// How many organizations that may be low are found at a time.
const FOUND: i64 = 20_000;

impl Prepaid {
    /// Reads what is read once for all organizations. The present is `as_of` instead of the time of the database, if it is given.
    pub(super) async fn context(&self, as_of: Option<Micros>) -> Result<Context, DbErr> {
        let gap = micros(self.billing_interval).min(Micros::MAX / 8).saturating_mul(2);
        let window = self.rules.grace.saturating_add(gap.saturating_mul(2));
        let values: [Value; 6] =
            [as_of.into(), BILLING_JOB.into(), gap.into(), window.into(), ACCEPTED.into(), RECONCILED.into()];
        let row = query_one(&self.db, statement(&self.db, &self.sql.context, values)).await?;
        let row = row.ok_or_else(|| DbErr::RecordNotFound("the time".to_owned()))?;
        let now: Micros = row.try_get("", "now")?;
        let last_run: Option<Micros> = row.try_get("", "last_run")?;
        let works_since: Option<Micros> = row.try_get("", "works_since")?;
        let waits: bool = row.try_get("", "waits")?;
        let works = !waits && last_run.is_some_and(|last| now.saturating_sub(last) <= gap);
        Ok(Context {
            now,
            last_run,
            billing_ok_since: works_since.filter(|_| works),
            as_of,
            is_due: row.try_get("", "is_due")?,
            is_restored: row.try_get("", "is_restored")?,
            prices: OnceCell::new(),
        })
    }

    /// What the policy may do at present: after a restore it watches until the wanted states are sent again.
    pub(super) fn effective_mode(&self, context: &Context) -> Mode {
        if context.is_restored { Mode::Watch } else { self.mode }
    }

    /// The ids of the next organizations after `after` that are not watched and may have to be.
    pub(super) async fn low(&self, now: Micros, after: &str) -> Result<(Vec<String>, bool), DbErr> {
        let hours = self.rules.watched_hours() + 1;
        let values: [Value; 4] = [now.into(), self.id(after), FOUND.into(), hours.into()];
        let txn = begin_read(&self.db, StatementLimit::Fleet).await?;
        if let Some(settings) = &self.sql.whole_table_settings {
            txn.query_one_raw(statement(&txn, settings, [])).await?;
        }
        let rows = txn.query_all_raw(statement(&txn, &self.sql.low, values)).await?;
        txn.commit().await?;
        let ids =
            rows.iter().map(|row| row.try_get("", "organization")).collect::<Result<Vec<String>, _>>()?;
        let is_last = i64::try_from(ids.len()).is_ok_and(|found| found < FOUND);
        Ok((ids, is_last))
    }

    /// Reads a page of organizations, in the order of their ids.
    pub(super) async fn page(
        &self,
        context: &Context,
        selection: &Selection,
    ) -> Result<Vec<Assessment>, DbErr> {
        // One round trip, as long as every price is known.
        let rows = query_fleet(&self.db, self.selected(context, selection)).await?;
        let needs_prices = rows.iter().any(|row| !columns::lossy(row, "details").is_empty());
        let none = PriceList::default();
        let prices = if needs_prices { self.prices(context).await? } else { &none };
        rows.iter().map(|row| self.assessment(row, context, prices)).collect()
    }

    /// Reads these organizations in a transaction, in the order of their ids.
    pub(super) async fn listed(
        &self,
        txn: &Transaction,
        context: &Context,
        prices: &PriceList,
        ids: &[String],
    ) -> Result<Vec<Assessment>, DbErr> {
        let rows = txn.query_all_raw(self.selected(context, &Selection::Listed(ids.to_vec()))).await?;
        rows.iter().map(|row| self.assessment(row, context, prices)).collect()
    }

    fn selected(&self, context: &Context, selection: &Selection) -> Statement {
        let now = context.now;
        let page = |after: &str| vec![now.into(), self.id(after), PAGE.into()];
        let (sql, values): (&str, Vec<Value>) = match selection {
            Selection::Watched(after) => (&self.sql.watched, page(after)),
            Selection::All(after) => (&self.sql.all, page(after)),
            Selection::Listed(ids) => {
                (&self.sql.listed, vec![now.into(), Json::from(ids.clone()).to_string().into()])
            }
        };
        statement(&self.db, sql, values)
    }

    /// The prices of the plans, read once for each check.
    pub(super) async fn prices<'c>(&self, context: &'c Context) -> Result<&'c PriceList, DbErr> {
        context.prices.get_or_try_init(|| async { Ok(self.biller.prices().await?.0) }).await
    }

    /// The value of a parameter that is the id of an organization; the first one of all is empty.
    pub(super) fn id(&self, after: &str) -> Value {
        let least = match self.db.get_database_backend() {
            DbBackend::Sqlite => "",
            _ => "00000000-0000-0000-0000-000000000000",
        };
        if after.is_empty() { least.into() } else { after.into() }
    }

    fn assessment(
        &self,
        row: &QueryResult,
        context: &Context,
        prices: &PriceList,
    ) -> Result<Assessment, DbErr> {
        let standing = standing(row)?;
        let wallet = wallet(row);
        let currency = wallet.as_ref().ok().map(|(_, currency)| *currency);
        let (policy, credit_limit) = policy(row)?;
        let account = self.account(row, context.now, prices).and_then(|account| match wallet {
            Ok((balance, _)) => Ok(Account { balance, credit_limit, ..account }),
            // What nothing is spent of need not be known.
            Err(_) if account.burn.0 == 0 => Ok(account),
            Err(problem) => Err(problem),
        });
        let waits: bool = row.try_get("", "waits")?;
        let facts = Facts {
            now: context.now,
            runway: account.as_ref().ok().map(|account| account.runway(self.panel.unit)),
            owes: account.as_ref().is_ok_and(|account| account.owed.0 > 0),
            billing_ok_since: context.billing_ok_since.filter(|_| !waits),
            notices: notices(row)?,
            policy,
        };
        let stored = match row.try_get::<Option<bool>>("", "watched")? {
            Some(watched) => Some(Stored { watched, runway_hours: row.try_get("", "runway_hours")? }),
            None => None,
        };
        Ok(Assessment {
            organization: row.try_get("", "organization")?,
            name: columns::lossy(row, "name"),
            standing: standing.unwrap_or_else(|| Standing::new(context.now)),
            stored,
            account,
            currency,
            facts,
        })
    }

    /// What the organization owes and spends.
    fn account(&self, row: &QueryResult, now: Micros, prices: &PriceList) -> Result<Account, String> {
        let number = |column| row.try_get::<i64>("", column).map_err(|error| error.to_string());
        let mut owed = number("owed")?.saturating_add(number("owed_before")?);
        let mut burn = number("burn")?;
        let details =
            columns::optional_text(row, "details", "vps_instances").map_err(|error| error.to_string())?;
        if let Some(details) = details {
            let details: Vec<Detail> = serde_json::from_str(&details).map_err(|error| error.to_string())?;
            for detail in details {
                let (rate, due) = self.spent(&detail, now, prices)?;
                burn = burn.saturating_add(rate.0);
                owed = owed.saturating_add(due.0);
            }
        }
        Ok(Account { owed: Money(owed), burn: Rate(burn), ..Account::default() })
    }

    /// The present rate of an instance and what it owes, where SQL does not decide.
    fn spent(&self, detail: &Detail, now: Micros, prices: &PriceList) -> Result<(Rate, Money), String> {
        let Detail(plan, provider, backups, anchor, rate, carry, changes) = detail;
        let rates = if let Some(first) = rate {
            Rates { first: Rate(*first).into(), changes: rate_changes(changes)? }
        } else {
            let key = PriceKey {
                plan_id: plan.as_deref().unwrap_or_default(),
                provider_id: provider.as_deref(),
                backup_frequency: backups.as_deref(),
            };
            prices.rates(key, now).map_err(|hold| hold.detail)?
        };
        let hours = anchor.filter(|anchor| *anchor > 0).map_or(0, |anchor| whole_hours(anchor, now));
        let start = anchor.unwrap_or(now);
        let due = if hours == 0 {
            Some(Money(0))
        } else {
            rates.cost(start, hours, Carry(carry.unwrap_or(0)), self.panel.unit)
        };
        let HourlyRate { total, .. } = rates.latest();
        due.map(|due| (total, due))
            .ok_or_else(|| "the amount due is larger than a wallet can hold".to_owned())
    }
}

/// An instance whose price SQL does not decide: plan, provider, backups, the start of its first unpaid hour, and of its meter the rate, the
/// carry and the later rates.
#[derive(serde::Deserialize)]
struct Detail(Option<String>, Option<String>, Option<String>, Option<Micros>, Option<i64>, Option<i64>, Json);

/// The later rates of a meter: JSON on PostgreSQL, its text on SQLite.
fn rate_changes(changes: &Json) -> Result<Vec<Change>, String> {
    let parsed = match changes {
        Json::Null => return Ok(Vec::new()),
        Json::String(text) => serde_json::from_str(text),
        json => serde_json::from_value(json.clone()),
    };
    parsed.map_err(|error| format!("billing_meters.rate_changes is not a list of rates: {error}"))
}

/// The balance and the currency of the only wallet.
fn wallet(row: &QueryResult) -> Result<(Money, Currency), String> {
    let wallets = columns::optional_text(row, "wallets", "wallets").map_err(|error| error.to_string())?;
    let wallets: Vec<(Option<i64>, Option<String>)> =
        serde_json::from_str(wallets.as_deref().unwrap_or("[]")).map_err(|error| error.to_string())?;
    match &wallets[..] {
        [] => Err("the organization has no wallet".to_owned()),
        [(balance, currency)] => {
            let currency = Currency::of_column(currency.clone()).map_err(|invalid| invalid.to_string())?;
            let balance =
                balance.ok_or_else(|| "the balance of the wallet is not an amount of money".to_owned())?;
            Ok((Money(balance), currency))
        }
        several => Err(format!("the organization has {} wallets", several.len())),
    }
}

fn standing(row: &QueryResult) -> Result<Option<Standing>, DbErr> {
    let Some(state) = row.try_get::<Option<String>>("", "state")? else { return Ok(None) };
    let known = State::ALL.into_iter().find(|known| known.as_str() == state);
    let state = known.ok_or_else(|| DbErr::Type(format!("billing_standings.state is `{state}`")))?;
    let desired: String = row.try_get("", "desired")?;
    let is_suspended = desired == Desired::Suspended.as_str();
    Ok(Some(Standing {
        state,
        since: row.try_get("", "since")?,
        episode: row.try_get("", "episode")?,
        level: row.try_get::<Option<i32>>("", "level")?.map(Level),
        exhausted_at: row.try_get("", "exhausted_at")?,
        order_number: row.try_get("", "order_number")?,
        desired: if is_suspended { Desired::Suspended } else { Desired::Running },
    }))
}

/// What the organization's row of `billing_policies` sets, and its credit limit.
fn policy(row: &QueryResult) -> Result<(Policy, Money), DbErr> {
    let Some(mode) = row.try_get::<Option<String>>("", "policy_mode")? else {
        return Ok((Policy::default(), Money(0)));
    };
    let known = PolicyMode::ALL.into_iter().find(|known| known.as_str() == mode);
    let mode = known.ok_or_else(|| DbErr::Type(format!("billing_policies.mode is `{mode}`")))?;
    let policy = Policy { mode, never_suspend_until: row.try_get("", "never_suspend_until")? };
    Ok((policy, Money(row.try_get("", "credit_limit")?)))
}

fn notices(row: &QueryResult) -> Result<Vec<Notice>, DbErr> {
    let text: Option<String> = row.try_get("", "notices")?;
    let rows: Vec<(i32, Micros, u8, u8, Option<Micros>)> =
        serde_json::from_str(text.as_deref().unwrap_or("[]"))
            .map_err(|error| DbErr::Json(error.to_string()))?;
    let notice = |(level, at, passed, sent, delivered): (i32, Micros, u8, u8, Option<Micros>)| {
        let given = match (passed == 1, sent == 1, delivered) {
            (true, ..) => Given::Passed,
            (false, false, _) => Given::Recorded,
            (false, true, None) => Given::Sent,
            (false, true, Some(at)) => Given::Delivered(at),
        };
        Notice { level: Level(level), at, given }
    };
    Ok(rows.into_iter().map(notice).collect())
}
