//! Rows of the database as what the decision needs.

use sea_orm::{
    DbErr, QueryResult, TryGetError,
    sqlx::{
        self, Postgres,
        postgres::{PgTypeInfo, PgValueRef},
    },
};

use super::{
    decide::{Instance, Meter, Wallet},
    id::Id,
    totals::{Sums, Totals},
};
use crate::{
    currency::Currency,
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
    let native = row.try_as_pg_row().is_some();
    let (last_billed_at, created_at) = (instant(row, 5)?, instant(row, 6)?);
    // PostgreSQL has instants that are none.
    let (invalid_time, gone) = if native {
        (matches!(last_billed_at.or(created_at), Some(Instant::Infinite)), 7)
    } else {
        (row.try_get_by_index(7)?, 8)
    };
    Ok(Instance {
        id: id(row, 0)?,
        organization: id(row, 1)?,
        label: row.try_get_by_index(2)?,
        plan: row.try_get_by_index(3)?,
        backup_frequency: row.try_get_by_index(4)?,
        last_billed_at: last_billed_at.and_then(Instant::micros),
        created_at: created_at.and_then(Instant::micros),
        invalid_time,
        gone: row.try_get_by_index(gone)?,
        meter: meter(row, gone + 1)?,
        held: row.try_get_by_index(gone + 7)?,
    })
}

/// Of the six columns from `first` on.
pub(super) fn meter(row: &QueryResult, first: usize) -> Result<Option<Meter>, DbErr> {
    let finite = |place| Ok::<_, DbErr>(instant(row, place)?.and_then(Instant::micros));
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

/// A time of the database.
#[derive(Clone, Copy)]
enum Instant {
    At(Micros),
    Infinite,
}

impl Instant {
    fn micros(self) -> Option<Micros> {
        match self {
            Self::At(micros) => Some(micros),
            Self::Infinite => None,
        }
    }
}

/// From 1970 to 2000, where PostgreSQL begins to count.
const UNTIL_2000: Micros = 946_684_800_000_000;

fn instant(row: &QueryResult, place: usize) -> Result<Option<Instant>, DbErr> {
    match row.try_get_from_sqlx_postgres(place) {
        Some(Ok(instant)) => Ok(Some(instant)),
        Some(Err(TryGetError::Null(_))) => Ok(None),
        Some(Err(error)) => Err(error.into()),
        None => Ok(row.try_get_by_index::<Option<Micros>>(place)?.map(Instant::At)),
    }
}

impl sqlx::Type<Postgres> for Instant {
    fn type_info() -> PgTypeInfo {
        <chrono::DateTime<chrono::Utc> as sqlx::Type<Postgres>>::type_info()
    }
}

impl<'r> sqlx::Decode<'r, Postgres> for Instant {
    /// The binary form: microseconds since 2000, where the ends of the range are the infinities.
    fn decode(value: PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
        let micros = <i64 as sqlx::Decode<Postgres>>::decode(value)?;
        Ok(match micros {
            i64::MAX | i64::MIN => Self::Infinite,
            micros => Self::At(micros.saturating_add(UNTIL_2000)),
        })
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
