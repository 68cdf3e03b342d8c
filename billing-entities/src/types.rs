//! Column types that PostgreSQL and SQLite store in different forms.
//!
//! A bound value carries its own cast for PostgreSQL (`$1::"uuid"`), which SQLite does not get. So an [`Id`] can be written and
//! compared on both. No form of the other types suits both: SQLite accepts them, and PostgreSQL rejects them, because the type in
//! their cast does not exist. Statements that write these types must be written per database.

use std::fmt::{Display, Formatter};

use sea_orm::prelude::{DateTimeUtc, Decimal, Uuid};
use sea_orm::sea_query::{ArrayType, ColumnType, Enum, Nullable, OptionEnum, ValueType, ValueTypeErr};
use sea_orm::{
    ActiveValue, ColIdx, DbErr, IntoActiveValue, QueryResult, TryFromU64, TryGetError, TryGetable, Value,
};

/// An identifier: `uuid` on PostgreSQL, hyphenated text on SQLite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub Uuid);

/// An amount of money in ten-thousandths of the currency: `numeric` on PostgreSQL, an integer on SQLite. PostgreSQL rejects it in
/// a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money(pub i64);

/// Ten-thousandths of an hour, stored as [`Money`] is. PostgreSQL rejects it in a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hours(pub i64);

/// An instant in a table of billing or of the scheduler: `timestamptz` on PostgreSQL, microseconds since 1970 on SQLite.
/// PostgreSQL rejects it in a statement. (In the panel's tables, SQLite has text, which SeaORM's own [`DateTimeUtc`] reads and
/// writes.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub DateTimeUtc);

impl Display for Id {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl TryGetable for Id {
    fn try_get_by<I: ColIdx>(row: &QueryResult, index: I) -> Result<Self, TryGetError> {
        if on_postgres(row) {
            return Uuid::try_get_by(row, index).map(Self);
        }
        let text = String::try_get_by(row, index)?;
        Self::from_text(&text).ok_or_else(|| unreadable(index, &text, "a hyphenated uuid"))
    }
}

impl TryGetable for Money {
    fn try_get_by<I: ColIdx>(row: &QueryResult, index: I) -> Result<Self, TryGetError> {
        ten_thousandths(row, index).map(Self)
    }
}

impl TryGetable for Hours {
    fn try_get_by<I: ColIdx>(row: &QueryResult, index: I) -> Result<Self, TryGetError> {
        ten_thousandths(row, index).map(Self)
    }
}

impl TryGetable for Instant {
    fn try_get_by<I: ColIdx>(row: &QueryResult, index: I) -> Result<Self, TryGetError> {
        if on_postgres(row) {
            return DateTimeUtc::try_get_by(row, index).map(Self);
        }
        let micros = i64::try_get_by(row, index)?;
        let instant = DateTimeUtc::from_timestamp_micros(micros);
        instant.map(Self).ok_or_else(|| unreadable(index, micros, "microseconds since 1970"))
    }
}

fn ten_thousandths<I: ColIdx>(row: &QueryResult, index: I) -> Result<i64, TryGetError> {
    if !on_postgres(row) {
        return i64::try_get_by(row, index);
    }
    let decimal = Decimal::try_get_by(row, index)?;
    let scaled = decimal.checked_mul(Decimal::from(10_000)).filter(Decimal::is_integer);
    let whole = scaled.and_then(|scaled| scaled.try_into().ok());
    whole.ok_or_else(|| unreadable(index, decimal, "a number with at most four decimals"))
}

fn on_postgres(row: &QueryResult) -> bool {
    row.try_as_pg_row().is_some()
}

fn unreadable(index: impl ColIdx, value: impl Display, expected: &str) -> TryGetError {
    TryGetError::DbErr(DbErr::Type(format!(
        "column {index:?} holds `{value}`, which is not {expected}: correct it"
    )))
}

/// The form in which a value is bound: the text that SQLite stores, and the type that PostgreSQL casts it to.
trait Bound: Sized {
    const POSTGRES: &'static str;
    fn to_text(self) -> String;
    fn from_text(text: &str) -> Option<Self>;
}

impl Bound for Id {
    const POSTGRES: &'static str = "uuid";

    fn to_text(self) -> String {
        self.to_string()
    }

    fn from_text(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl Bound for Money {
    const POSTGRES: &'static str = "read_only_money";

    fn to_text(self) -> String {
        self.0.to_string()
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

impl Bound for Hours {
    const POSTGRES: &'static str = "read_only_hours";

    fn to_text(self) -> String {
        self.0.to_string()
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

impl Bound for Instant {
    const POSTGRES: &'static str = "read_only_instant";

    fn to_text(self) -> String {
        self.0.timestamp_micros().to_string()
    }

    fn from_text(text: &str) -> Option<Self> {
        DateTimeUtc::from_timestamp_micros(text.parse().ok()?).map(Self)
    }
}

/// Implements the traits that SeaORM requires of a column's type in addition to [`TryGetable`].
macro_rules! column {
    ($type:ident, $column_type:expr) => {
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                let bound = Enum { type_name: $type::POSTGRES.into(), value: value.to_text().into() };
                Self::Enum(OptionEnum::Some(Box::new(bound)))
            }
        }

        impl ValueType for $type {
            fn try_from(value: Value) -> Result<Self, ValueTypeErr> {
                match value {
                    Value::Enum(OptionEnum::Some(bound)) => Self::from_text(&bound.value).ok_or(ValueTypeErr),
                    _ => Err(ValueTypeErr),
                }
            }

            fn type_name() -> String {
                stringify!($type).to_owned()
            }

            fn array_type() -> ArrayType {
                ArrayType::Enum(Box::new(Self::POSTGRES.into()))
            }

            fn column_type() -> ColumnType {
                $column_type
            }
        }

        impl Nullable for $type {
            fn null() -> Value {
                Value::Enum(OptionEnum::None(Self::POSTGRES.into()))
            }
        }

        impl IntoActiveValue<$type> for $type {
            fn into_active_value(self) -> ActiveValue<$type> {
                ActiveValue::Set(self)
            }
        }

        impl TryFromU64 for $type {
            fn try_from_u64(_: u64) -> Result<Self, DbErr> {
                Err(DbErr::ConvertFromU64(stringify!($type)))
            }
        }
    };
}

column!(Id, ColumnType::Uuid);
column!(Money, ColumnType::Decimal(Some((14, 4))));
column!(Hours, ColumnType::Decimal(Some((14, 4))));
column!(Instant, ColumnType::TimestampWithTimeZone);
