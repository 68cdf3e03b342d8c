//! Rows of the database as what the decision needs.

use sea_orm::{
    DbErr, QueryResult, TryGetError,
    sqlx::{
        self, Postgres,
        postgres::{PgTypeInfo, PgValueRef},
    },
};

use super::{
    decide::{Instance, Meter, Transfer, Wallet},
    id::Id,
    panel_time::PanelTime,
    totals::{Sums, Totals},
};
use crate::{
    currency::Currency,
    hold::Reason,
    money::{Carry, Money, Rate},
    period::{Micros, Rates},
    price::{BackupPrices, Plan},
};

pub(super) fn plan(row: &QueryResult, backups: bool) -> Result<Plan, DbErr> {
    Ok(Plan {
        id: row.try_get("", "id")?,
        provider_plan_id: row.try_get("", "provider_plan_id")?,
        base_price: row.try_get("", "base")?,
        markup_price: row.try_get("", "markup")?,
        backups: backups
            .then(|| {
                Ok::<_, DbErr>(BackupPrices {
                    price: row.try_get("", "backup")?,
                    upcharge: row.try_get("", "upcharge")?,
                })
            })
            .transpose()?,
    })
}

pub(super) fn wallet(row: &QueryResult) -> Result<Wallet, DbErr> {
    Ok(Wallet {
        id: id(row, 0)?,
        organization: id(row, 1)?,
        balance: row.try_get_by_index::<Option<i64>>(2)?.map(Money),
        currency: Currency::of_column(row.try_get_by_index(3)?),
        opened: row.try_get_by_index(4)?,
    })
}

/// By place, for a lookup by name of each value would take longer than the rest.
pub(super) fn instance(row: &QueryResult) -> Result<Instance, DbErr> {
    let held: Option<String> = row.try_get_by_index(14)?;
    Ok(Instance {
        id: id(row, 0)?,
        organization: id(row, 1)?,
        label: row.try_get_by_index(2)?,
        plan: row.try_get_by_index(3)?,
        backup_frequency: row.try_get_by_index(4)?,
        last_billed_at: panel_time(row, 5)?,
        created_at: panel_time(row, 6)?,
        gone: row.try_get_by_index(7)?,
        meter: meter(row, 8)?,
        // A word that is unknown here is none that a rule depends on.
        held: held.map(|reason| reason.parse().unwrap_or(Reason::Failed)),
        transfer: transfer(row, 15)?,
    })
}

/// Of the three columns from `first` on.
fn transfer(row: &QueryResult, first: usize) -> Result<Option<Transfer>, DbErr> {
    let pending: bool = row.try_get_by_index(first)?;
    let Some(seen_at) = ours(row, first + 1)?.at() else {
        return Ok(pending.then_some(Transfer::Pending));
    };
    Ok(Some(Transfer::From { to: id(row, first + 2)?, seen_at }))
}

/// Of the six columns from `first` on.
pub(super) fn meter(row: &QueryResult, first: usize) -> Result<Option<Meter>, DbErr> {
    let finite = |place| Ok::<_, DbErr>(ours(row, place)?.at());
    let Some(billed_through) = finite(first)? else { return Ok(None) };
    let changes: Option<String> = row.try_get_by_index(first + 3)?;
    let changes = changes.map(|text| serde_json::from_str(&text)).transpose();
    let changes = changes.map_err(|error| DbErr::Type(format!("billing_meters.rate_changes: {error}")))?;
    let rate: Option<i64> = row.try_get_by_index(first + 2)?;
    Ok(Some(Meter {
        billed_through,
        carry: Carry(row.try_get_by_index(first + 1)?),
        rates: rate.map(|rate| Rates { first: Rate(rate), changes: changes.unwrap_or_default() }),
        seen_at: finite(first + 4)?
            .ok_or_else(|| DbErr::Type("billing_meters.seen_at is no time".to_owned()))?,
        panel_debited_at: finite(first + 5)?,
    }))
}

/// An id in whichever form the database keeps it.
pub(super) fn id(row: &QueryResult, place: usize) -> Result<Id, DbErr> {
    if row.try_as_pg_row().is_some() {
        Ok(Id::Uuid(row.try_get_by_index(place)?))
    } else {
        Ok(Id::from(row.try_get_by_index::<String>(place)?))
    }
}

/// A time of the panel's, by place.
pub(super) fn panel_time(row: &QueryResult, place: usize) -> Result<PanelTime, DbErr> {
    if row.try_as_pg_row().is_some() {
        native(row, place)
    } else {
        Ok(PanelTime::from_sqlite(row.try_get_by_index(place)?))
    }
}

/// A time of ours, which SQLite keeps in microseconds.
fn ours(row: &QueryResult, place: usize) -> Result<PanelTime, DbErr> {
    if row.try_as_pg_row().is_some() {
        native(row, place)
    } else {
        Ok(row.try_get_by_index::<Option<Micros>>(place)?.map_or(PanelTime::Null, PanelTime::At))
    }
}

fn native(row: &QueryResult, place: usize) -> Result<PanelTime, DbErr> {
    match row.try_get_from_sqlx_postgres(place) {
        Some(Ok(Timestamp(time))) => Ok(time),
        Some(Err(TryGetError::Null(_))) | None => Ok(PanelTime::Null),
        Some(Err(error)) => Err(error.into()),
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
    let sums: Option<String> = row.try_get("", "currencies")?;
    let sums = sums.map_or(Ok(Sums::default()), |text| serde_json::from_str(&text));
    let sums = sums.map_err(|error| DbErr::Type(format!("billing_batches.currencies: {error}")))?;
    Ok(Totals {
        charged: count("charged")?,
        charges: count("charges")?,
        held: count("held")?,
        hours: count("hours")?,
        sums,
    })
}
