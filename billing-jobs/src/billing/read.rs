//! Rows of the database as the values that the decision needs. A row that cannot be read affects its customer alone: it becomes an
//! instance that is held, with the reason.

use std::time::Instant;

use sea_orm::{
    ColIdx, DbErr, QueryResult, TryGetError,
    sqlx::{
        self, Postgres,
        postgres::{PgTypeInfo, PgValueRef},
    },
};

use super::{
    id::Id,
    model::{Instance, Meter, Transfer, Wallet},
    panel_time::PanelTime,
    totals::{Totals, TotalsByCurrency},
};
use crate::{
    currency::{Currency, InvalidCurrency},
    hold::{Hold, Reason},
    money::{Carry, HourlyRate, Money, Rate, decimal_text},
    panel::Panel,
    period::{Change, Micros, Rates},
    price::{BackupPrices, Plan},
};
use billing_store::columns::{self, Unreadable, optional_text, text, value};

/// What a transaction has read under its locks.
#[derive(Clone)]
pub(super) struct LoadedBatch {
    pub(super) wallets: Vec<Wallet>,
    /// Ordered by organization.
    pub(super) instances: Vec<Instance>,
    /// The instances whose id cannot be read, so that they cannot be held.
    nameless: Vec<String>,
    /// When all of it was read.
    pub(super) at: Instant,
}

impl LoadedBatch {
    /// From the rows of `read_wallets` and of `read_due`.
    pub(super) fn of(wallets: &[QueryResult], instances: &[QueryResult]) -> Self {
        let mut nameless = Vec::new();
        let instances = instances.iter().filter_map(|row| {
            instance(row).map_err(|unreadable| nameless.push(format!("an instance: {unreadable}"))).ok()
        });
        Self {
            instances: instances.collect(),
            wallets: wallets.iter().filter_map(wallet).collect(),
            nameless,
            at: Instant::now(),
        }
    }

    /// A sentence for each row that cannot be read.
    pub(super) fn unreadable(&self) -> impl Iterator<Item = String> + '_ {
        let instances = self.instances.iter().filter_map(|instance| {
            instance.unreadable.as_ref().map(|unreadable| format!("instance {}: {unreadable}", instance.id))
        });
        let wallets = self.wallets.iter().filter_map(|wallet| match &wallet.balance {
            Err(Hold { reason: Reason::Unreadable, detail }) => {
                Some(format!("wallet of organization {}: {detail}", wallet.organization))
            }
            _ => None,
        });
        self.nameless.iter().cloned().chain(instances).chain(wallets)
    }
}

/// A plan. If it cannot be read, it has the reason instead of a price.
pub(super) fn plan(row: &QueryResult, panel: Panel) -> Plan {
    let names = Plan {
        id: columns::lossy(row, "id"),
        provider_plan_id: columns::lossy(row, "provider_plan_id"),
        ..Plan::default()
    };
    match prices(row, panel) {
        Ok((provider_id, [base_price, markup_price, price, upcharge])) => Plan {
            provider_id,
            base_price,
            markup_price,
            backups: panel.backups.then_some(BackupPrices { price, upcharge }),
            ..names
        },
        Err(unreadable) => Plan { unreadable: Some(unreadable.to_string()), ..names },
    }
}

/// The provider of a plan whose names can be read, and its prices: base, markup, and both of backups.
fn prices(row: &QueryResult, panel: Panel) -> Result<(Option<String>, [Option<String>; 4]), Unreadable> {
    text(row, "id", "vps_plans.id")?;
    // One without a provider's name is found by its id alone.
    optional_text(row, "provider_plan_id", "vps_plans.provider_plan_id")?;
    let price = |place, column, decimals| match panel.backend {
        // An integer of this many decimals.
        sea_orm::DbBackend::Sqlite => {
            let units: Option<i64> = value(row, place, column)?;
            Ok(units.map(|units| decimal_text(units.into(), decimals, decimals)))
        }
        _ => optional_text(row, place, column),
    };
    let prices = [
        price("base", "vps_plans.base_price", 4)?,
        price("markup", "vps_plans.markup_price", 4)?,
        price("backup", "vps_plans.backup_price_hourly", 6)?,
        price("upcharge", "vps_plans.backup_upcharge_hourly", 6)?,
    ];
    Ok((optional_text(row, "provider_id", "vps_plans.provider_id")?, prices))
}

/// A wallet, unless not even its organization is known: then it pays for no instance.
pub(super) fn wallet(row: &QueryResult) -> Option<Wallet> {
    let organization = id(row, 1, "wallets.organization_id").ok()?;
    let read = || {
        let currency = Currency::of_column(optional_text(row, 3, "wallets.currency")?);
        Ok((id(row, 0, "wallets.id")?, currency, value(row, 4, "billing_wallet_openings")?))
    };
    let (id, currency, opened, balance) = match read() {
        Ok((id, currency, opened)) => {
            let balance = balance(row, &id);
            (id, currency, opened, balance)
        }
        Err(unreadable) => {
            let held = Hold::new(Reason::Unreadable, Unreadable::to_string(&unreadable));
            (Id::Uuid(Id::NONE), Err(InvalidCurrency(None)), true, Err(held))
        }
    };
    Some(Wallet { id, organization, balance, currency, opened })
}

/// The balance of a wallet: on SQLite ten-thousandths, on PostgreSQL text, because it may be an amount that has no such integer.
fn balance(row: &QueryResult, wallet: &Id) -> Result<Money, Hold> {
    if row.try_as_pg_row().is_none() {
        return match value::<Option<i64>>(row, 2, "wallets.balance") {
            Ok(Some(balance)) => Ok(Money(balance)),
            Ok(None) => Err(Hold::invalid_balance(wallet, "NULL", "is not an amount of money")),
            Err(unreadable) => Err(Hold::new(Reason::Unreadable, unreadable.to_string())),
        };
    }
    match optional_text(row, 2, "wallets.balance") {
        Ok(Some(text)) => {
            Money::of_wallet(&text).map_err(|problem| Hold::invalid_balance(wallet, &text, problem))
        }
        Ok(None) => Err(Hold::invalid_balance(wallet, "NULL", "is not an amount of money")),
        Err(unreadable) => Err(Hold::new(Reason::Unreadable, unreadable.to_string())),
    }
}

/// By place, for a lookup by name of each value would take longer than the rest.
///
/// # Errors
/// Not even its id can be read, so it cannot be held.
fn instance(row: &QueryResult) -> Result<Instance, Unreadable> {
    let table = Columns::of(value(row, 7, "vps_instances")?);
    let id = id(row, 0, table.id)?;
    let unowned = Id::Uuid(Id::NONE);
    let held: Option<String> = optional_text(row, 15, "billing_holds.reason")?;
    let organization = self::id(row, 1, table.organization).unwrap_or(unowned);
    let mut instance = Instance {
        gone: table.gone,
        // No rule depends on a word that is unknown here.
        held: held.map(|reason| reason.parse().unwrap_or(Reason::Failed)),
        transfer: transfer(row, 16)?,
        ..Instance::unread(id, organization)
    };
    if let Err(unreadable) = rest_of_instance(row, &table, &mut instance) {
        instance.label = columns::lossy(row, 2);
        instance.unreadable = Some(unreadable.to_string());
    }
    Ok(instance)
}

/// Of the three columns from `first` on.
fn transfer(row: &QueryResult, first: usize) -> Result<Option<Transfer>, Unreadable> {
    let pending: bool = value(row, first, "billing_holds.organization_id")?;
    let Some(seen_at) = ours(row, first + 1, "billing_holds.seen_at")?.at() else {
        return Ok(pending.then_some(Transfer::Pending));
    };
    Ok(Some(Transfer::From { to: id(row, first + 2, "vps_instances.organization_id")?, seen_at }))
}

/// Which columns a row of `read_due` comes from: an instance that is gone is known by its hold alone.
struct Columns {
    gone: bool,
    id: &'static str,
    organization: &'static str,
    label: &'static str,
}

impl Columns {
    fn of(gone: bool) -> Self {
        let [id, organization, label] = if gone {
            ["billing_holds.instance_id", "billing_holds.organization_id", "billing_holds.label"]
        } else {
            ["vps_instances.id", "vps_instances.organization_id", "vps_instances.label"]
        };
        Self { gone, id, organization, label }
    }
}

fn rest_of_instance(row: &QueryResult, table: &Columns, instance: &mut Instance) -> Result<(), Unreadable> {
    id(row, 1, table.organization)?;
    instance.label = text(row, 2, table.label)?;
    instance.plan = text(row, 3, "vps_instances.plan_id")?;
    instance.backup_frequency = optional_text(row, 4, "vps_instances.backup_frequency")?;
    instance.provider = optional_text(row, 19, "vps_instances.provider_id")?;
    instance.last_billed_at = panel_time(row, 5, "vps_instances.last_billed_at")?;
    instance.created_at = panel_time(row, 6, "vps_instances.created_at")?;
    instance.meter = meter(row, 8)?;
    Ok(())
}

/// Of the seven columns from `first` on.
pub(super) fn meter(row: &QueryResult, first: usize) -> Result<Option<Meter>, Unreadable> {
    let finite = |place, column| Ok::<_, Unreadable>(ours(row, place, column)?.at());
    let Some(billed_through) = finite(first, "billing_meters.billed_through")? else { return Ok(None) };
    let rate: Option<i64> = value(row, first + 2, "billing_meters.rate")?;
    let backup: Option<i64> = value(row, first + 3, "billing_meters.backup_rate")?;
    let rate = rate.map(|total| HourlyRate { total: Rate(total), backup: Rate(backup.unwrap_or(0)) });
    let changes = rate_changes(row, first + 4)?;
    Ok(Some(Meter {
        billed_through,
        carry: Carry(value(row, first + 1, "billing_meters.carry")?),
        rates: rate.map(|first| Rates { first, changes }),
        seen_at: finite(first + 5, "billing_meters.seen_at")?
            .ok_or_else(|| Unreadable::new("billing_meters.seen_at", "is not an instant"))?,
        panel_debited_at: finite(first + 6, "billing_meters.panel_debited_at")?,
    }))
}

fn rate_changes(row: &QueryResult, place: usize) -> Result<Vec<Change>, Unreadable> {
    const COLUMN: &str = "billing_meters.rate_changes";
    let Some(text) = optional_text(row, place, COLUMN)? else { return Ok(Vec::new()) };
    let changes: Vec<Change> = serde_json::from_str(&text)
        .map_err(|error| Unreadable::new(COLUMN, format!("is not a list of rates: {error}")))?;
    let is_rate = |HourlyRate { total, backup }: HourlyRate| 0 <= backup.0 && backup <= total;
    if !changes.iter().all(|change| is_rate(change.rate))
        || !changes.is_sorted_by_key(|change| change.seen_at)
    {
        return Err(Unreadable::new(COLUMN, "is not a list of rates in the order in which they were seen"));
    }
    Ok(changes)
}

/// An id in whichever form the database keeps it.
pub(super) fn id(row: &QueryResult, place: impl ColIdx, column: &'static str) -> Result<Id, Unreadable> {
    if row.try_as_pg_row().is_some() {
        value(row, place, column).map(Id::Uuid)
    } else {
        text(row, place, column).map(Id::from)
    }
}

/// A time of the panel's.
pub(super) fn panel_time(
    row: &QueryResult,
    place: usize,
    column: &'static str,
) -> Result<PanelTime, Unreadable> {
    if row.try_as_pg_row().is_some() {
        native(row, place, column)
    } else {
        optional_text(row, place, column).map(PanelTime::from_sqlite)
    }
}

/// A time of ours, which SQLite keeps in microseconds.
fn ours(row: &QueryResult, place: usize, column: &'static str) -> Result<PanelTime, Unreadable> {
    if row.try_as_pg_row().is_some() {
        native(row, place, column)
    } else {
        Ok(value::<Option<Micros>>(row, place, column)?.map_or(PanelTime::Null, PanelTime::At))
    }
}

fn native(row: &QueryResult, place: usize, column: &'static str) -> Result<PanelTime, Unreadable> {
    match row.try_get_from_sqlx_postgres(place) {
        Some(Ok(Timestamp(time))) => Ok(time),
        Some(Err(TryGetError::Null(_))) | None => Ok(PanelTime::Null),
        Some(Err(error)) => Err(Unreadable::new(column, format!("cannot be read: {}", DbErr::from(error)))),
    }
}

/// A `timestamptz`, infinities included.
struct Timestamp(PanelTime);

/// From 1970 to 2000, where PostgreSQL begins to count.
const UNTIL_2000: Micros = 946_684_800_000_000;

impl sqlx::Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        <chrono::DateTime<chrono::Utc> as sqlx::Type<Postgres>>::type_info()
    }
}

impl<'r> sqlx::Decode<'r, Postgres> for Timestamp {
    /// The binary form: microseconds since 2000, where the ends of the range are the infinities.
    fn decode(value: PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
        let micros = <i64 as sqlx::Decode<Postgres>>::decode(value)?;
        Ok(Self(match micros {
            i64::MAX => PanelTime::NotAnInstant("infinity".to_owned()),
            i64::MIN => PanelTime::NotAnInstant("-infinity".to_owned()),
            micros => PanelTime::At(micros.saturating_add(UNTIL_2000)),
        }))
    }
}

pub(super) fn totals(row: &QueryResult) -> Result<Totals, DbErr> {
    let count = |column| row.try_get::<i64>("", column).map(i64::unsigned_abs);
    let currencies: Option<String> = row.try_get("", "currencies")?;
    let currencies = currencies.map_or(Ok(TotalsByCurrency::default()), |text| serde_json::from_str(&text));
    let currencies =
        currencies.map_err(|error| DbErr::Type(format!("billing_batches.currencies: {error}")))?;
    Ok(Totals {
        charged: count("charged")?,
        charges: count("charges")?,
        held: count("held")?,
        hours: count("hours")?,
        currencies,
    })
}
