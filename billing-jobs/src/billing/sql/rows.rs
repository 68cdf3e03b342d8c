//! Lists of rows that are written: on PostgreSQL by one statement with an array for each column; on SQLite, which has no arrays, by
//! statements over several rows of placeholders, because each statement there costs two thread switches.

use chrono::{DateTime, Datelike as _, SecondsFormat, Utc};
use sea_orm::{DbBackend, Statement, Value, sea_query::ArrayType};
use uuid::Uuid;

use crate::{
    billing::{
        id::Id,
        model::{AnchorRow, ChargeRow, HoldRow, MeterRow, RepairRow, WalletRow},
    },
    currency::Currency,
    period::{HOUR, Micros},
    price::SeenRate,
};

/// The type of a column. An array has no NULLs here, so another value represents a missing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::billing) enum Kind {
    Id,
    MaybeId,
    Number,
    MaybeNumber,
    Text,
    MaybeText,
}

/// The columns of a list of rows, in order. SQLite's statements have their placeholders in the same order; it keeps instants of
/// the panel's as text, and then has the end of a period instead of its hours.
pub(in crate::billing) type Fields = &'static [(&'static str, Kind)];

pub(in crate::billing) const LEDGER: Fields = &[
    ("ledger", Kind::Id),
    ("organization", Kind::Id),
    ("amount", Kind::Number),
    ("currency", Kind::Text),
    ("description", Kind::Text),
    ("metadata", Kind::Text),
    ("created_at", Kind::Number),
];
pub(in crate::billing) const CHARGES: Fields = &[
    ("batch", Kind::Number),
    ("instance", Kind::Id),
    ("organization", Kind::Id),
    ("start", Kind::Number),
    ("hours", Kind::Number),
    ("rate", Kind::Number),
    ("amount", Kind::Number),
    ("carry", Kind::Number),
    ("ledger", Kind::MaybeId),
    ("currency", Kind::Text),
];
pub(in crate::billing) const CYCLES: Fields = &[
    ("cycle", Kind::Id),
    ("instance", Kind::Id),
    ("organization", Kind::Id),
    ("start", Kind::Number),
    ("hours", Kind::Number),
    ("rate", Kind::Number),
    ("amount", Kind::Number),
    ("ledger", Kind::MaybeId),
    ("metadata", Kind::Text),
];
/// The columns of a meter that moves.
pub(in crate::billing) const METERS: Fields = &[
    ("organization", Kind::Id),
    ("billed_through", Kind::Number),
    ("carry", Kind::Number),
    ("rate", Kind::MaybeNumber),
    ("backup_rate", Kind::MaybeNumber),
    ("rate_changes", Kind::MaybeText),
    ("seen_at", Kind::Number),
    ("instance", Kind::Id),
    ("billed_through_before", Kind::MaybeNumber),
];
/// A new meter has no watermark to compare with.
pub(in crate::billing) const NEW_METERS: Fields = METERS.split_at(METERS.len() - 1).0;
/// SQLite needs no `before`: no other connection can have written since.
pub(in crate::billing) const ANCHORS: Fields =
    &[("after", Kind::Number), ("instance", Kind::Id), ("before", Kind::MaybeNumber)];
pub(in crate::billing) const REPAIRS: Fields =
    &[("instance", Kind::Id), ("since", Kind::Number), ("until", Kind::Number)];
pub(in crate::billing) const HOLDS: Fields = &[
    ("instance", Kind::Id),
    ("organization", Kind::Id),
    ("label", Kind::Text),
    ("reason", Kind::Text),
    ("detail", Kind::Text),
    ("hours", Kind::MaybeNumber),
    ("amount", Kind::MaybeNumber),
    ("currency", Kind::MaybeText),
    ("opened_at", Kind::Number),
    ("seen_at", Kind::Number),
];
pub(in crate::billing) const SEEN_RATES: Fields = &[
    ("plan", Kind::Text),
    ("backups", Kind::Text),
    ("seen_at", Kind::Number),
    ("rate", Kind::Number),
    ("backup_rate", Kind::Number),
];
pub(in crate::billing) const WALLETS: Fields =
    &[("after", Kind::Number), ("wallet", Kind::Id), ("before", Kind::Number)];

/// The rows of a statement's parameters, as `d`, on PostgreSQL.
pub(in crate::billing) fn postgres_rows(fields: Fields) -> String {
    let mut arrays = Vec::new();
    let mut names = Vec::new();
    let mut columns = Vec::new();
    for (number, (name, kind)) in (1..).zip(fields) {
        let (of, column) = match kind {
            Kind::Id => ("uuid", (*name).to_owned()),
            Kind::MaybeId => ("uuid", format!("nullif({name}, '{}')", Id::NONE)),
            Kind::Number => ("bigint", (*name).to_owned()),
            Kind::MaybeNumber => ("bigint", format!("nullif({name}, {})", i64::MAX)),
            Kind::Text => ("text", (*name).to_owned()),
            Kind::MaybeText => ("text", format!("nullif({name}, '')")),
        };
        arrays.push(format!("${number}::{of}[]"));
        names.push(*name);
        columns.push(format!("{column} AS {name}"));
    }
    let (columns, arrays, names) = (columns.join(", "), arrays.join(", "), names.join(", "));
    format!("(SELECT {columns} FROM unnest({arrays}) AS a({names})) AS d")
}

/// How many rows a statement for SQLite has: each of these statements is prepared once and kept.
const AT_ONCE: [usize; 3] = [64, 8, 1];

/// Splits `rows` into statements: how many rows each of them has.
fn shares(rows: usize) -> impl Iterator<Item = usize> {
    let mut left = rows;
    AT_ONCE.into_iter().flat_map(move |at_once| {
        let statements = left / at_once;
        left %= at_once;
        std::iter::repeat_n(at_once, statements)
    })
}

/// SQLite's statement `sql`, which has one row of placeholders in braces, for so many rows.
pub(in crate::billing) fn sqlite_rows(sql: &str, rows: usize) -> String {
    let (before, rest) = sql.split_once('{').expect("a statement over rows has one in braces");
    let (row, after) = rest.split_once('}').expect("a brace that opens is closed");
    format!("{before}{}{after}", vec![row; rows].join(", "))
}

/// Rows that are written into a table.
pub(in crate::billing) enum Rows {
    Arrays {
        fields: Fields,
        columns: Vec<Vec<Value>>,
        filled: usize,
    },
    /// The values of one row after the other.
    Flat {
        rows: usize,
        values: Vec<Value>,
    },
}

impl Rows {
    pub(in crate::billing) fn new(backend: DbBackend, fields: Fields, capacity: usize) -> Self {
        if backend == DbBackend::Sqlite {
            Self::Flat { rows: 0, values: Vec::with_capacity(capacity * fields.len()) }
        } else {
            let columns = fields.iter().map(|_| Vec::with_capacity(capacity)).collect();
            Self::Arrays { fields, columns, filled: 0 }
        }
    }

    /// The statements that write them all with `sql`; none if there are no rows.
    pub(in crate::billing) fn statements(self, sql: &str) -> Vec<Statement> {
        match self {
            Self::Arrays { columns, .. } if columns.first().is_none_or(Vec::is_empty) => Vec::new(),
            Self::Arrays { fields, columns, .. } => {
                let values = fields.iter().zip(columns).map(|((_, kind), values)| array(*kind, values));
                vec![Statement::from_sql_and_values(DbBackend::Postgres, sql, values)]
            }
            Self::Flat { rows, values } => {
                let width = values.len().checked_div(rows).unwrap_or_default();
                let mut values = values.into_iter();
                let statement = |at_once| {
                    let values: Vec<Value> = values.by_ref().take(width * at_once).collect();
                    Statement::from_sql_and_values(DbBackend::Sqlite, sqlite_rows(sql, at_once), values)
                };
                shares(rows).map(statement).collect()
            }
        }
    }

    /// Begins a row; its columns follow in order.
    fn begin(&mut self) -> &mut Self {
        match self {
            Self::Arrays { filled, .. } => *filled = 0,
            Self::Flat { rows, .. } => *rows += 1,
        }
        self
    }

    fn push(&mut self, array: impl FnOnce() -> Value, flat: impl FnOnce() -> Value) -> &mut Self {
        match self {
            Self::Arrays { columns, filled, .. } => {
                columns[*filled].push(array());
                *filled += 1;
            }
            Self::Flat { values, .. } => values.push(flat()),
        }
        self
    }

    fn id(&mut self, id: &Id) -> &mut Self {
        self.push(|| id.uuid().into(), || id.to_string().into())
    }

    fn uuid(&mut self, id: Option<Uuid>) -> &mut Self {
        self.push(|| id.unwrap_or(Id::NONE).into(), || id.map(|id| id.to_string()).into())
    }

    fn number(&mut self, number: impl Into<Option<i64>>) -> &mut Self {
        let number = number.into();
        self.push(|| number.unwrap_or(i64::MAX).into(), || number.into())
    }

    fn text(&mut self, text: String) -> &mut Self {
        match self {
            Self::Arrays { .. } => self.push(|| text.into(), || Value::String(None)),
            Self::Flat { values, .. } => {
                values.push(text.into());
                self
            }
        }
    }

    fn maybe_text(&mut self, text: Option<&str>) -> &mut Self {
        self.push(|| text.unwrap_or_default().into(), || text.map(str::to_owned).into())
    }

    /// An instant of the panel's.
    fn instant(&mut self, micros: Micros) -> &mut Self {
        self.push(|| micros.into(), || instant(micros).into())
    }

    /// So many hours of the panel's.
    fn period(&mut self, start: Micros, hours: i64) -> &mut Self {
        self.instant(start).push(|| hours.into(), || instant(start + hours * HOUR).into())
    }

    /// A value to compare with, where other connections may have written since.
    fn guard(&mut self, before: Option<i64>) -> &mut Self {
        match self {
            Self::Arrays { .. } => self.number(before),
            Self::Flat { .. } => self,
        }
    }
}

fn array(kind: Kind, values: Vec<Value>) -> Value {
    let of = match kind {
        Kind::Id | Kind::MaybeId => ArrayType::Uuid,
        Kind::Number | Kind::MaybeNumber => ArrayType::BigInt,
        Kind::Text | Kind::MaybeText => ArrayType::String,
    };
    Value::Array(of, Some(Box::new(values)))
}

/// The panel's text for an instant on SQLite; none, which its columns reject, for a year without four digits.
fn instant(micros: Micros) -> Option<String> {
    let instant = DateTime::<Utc>::from_timestamp_micros(micros)?;
    (0..=9999).contains(&instant.year()).then(|| instant.to_rfc3339_opts(SecondsFormat::Micros, false))
}

/// `text` as a string of JSON.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text is always JSON")
}

/// The debits of `charges`, the last of them created at `until` and each a microsecond after the one before it: the panel's invoice
/// orders the rows of an organization by that alone.
pub(in crate::billing) fn ledger(backend: DbBackend, charges: &[ChargeRow<'_>], until: Micros) -> Rows {
    let mut rows = Rows::new(backend, LEDGER, charges.len());
    let mut created_at = until - Micros::try_from(debits(charges)).unwrap_or_default();
    for charge in charges {
        let (instance, Some(debit)) = (charge.instance, &charge.debit) else { continue };
        created_at += 1;
        let description = format!("VPS Hourly Billing - {} ({}h)", instance.label, charge.hours);
        let metadata = format!(
            r#"{{"balance_before":{},"balance_after":{}}}"#,
            debit.balance_before, debit.balance_after
        );
        rows.begin()
            .uuid(Some(debit.id))
            .id(&instance.organization)
            .number(charge.amount.0)
            .text(charge.currency.to_string())
            .text(description)
            .text(metadata)
            .instant(created_at);
    }
    rows
}

/// How many of `charges` have a row in the wallets' ledger.
pub(in crate::billing) fn debits(charges: &[ChargeRow<'_>]) -> usize {
    charges.iter().filter(|charge| charge.debit.is_some()).count()
}

pub(in crate::billing) fn charges(backend: DbBackend, batch: i64, charges: &[ChargeRow<'_>]) -> Rows {
    let mut rows = Rows::new(backend, CHARGES, charges.len());
    let mut charges: Vec<_> = charges.iter().collect();
    if backend == DbBackend::Sqlite {
        // In the order of the table's key, each row goes to the end of the table.
        charges.sort_unstable_by_key(|charge| (&charge.instance.id, charge.start));
    }
    for charge in charges {
        rows.begin()
            .number(batch)
            .id(&charge.instance.id)
            .id(&charge.instance.organization)
            .number(charge.start)
            .number(charge.hours)
            .number(charge.rate.total.0)
            .number(charge.amount.0)
            .number(charge.carry.0)
            .uuid(charge.debit.as_ref().map(|debit| debit.id))
            .text(charge.currency.to_string());
    }
    rows
}

pub(in crate::billing) fn cycles(backend: DbBackend, charges: &[ChargeRow<'_>]) -> Rows {
    let mut rows = Rows::new(backend, CYCLES, charges.len());
    for charge in charges.iter().filter(|charge| charge.cycle.is_some()) {
        let instance = charge.instance;
        // Written by hand, because the rates are exact: `serde_json` would make floating-point numbers of them.
        let metadata = format!(
            r#"{{"hours_charged":{},"elapsed_hours":{},"base_hourly_rate":{},"backup_hourly_rate":{},"backup_frequency":{},"vps_label":{}}}"#,
            charge.hours,
            charge.elapsed_hours,
            charge.rate.base().per_hour(6),
            charge.rate.backup.per_hour(6),
            quoted(instance.backup_frequency.as_deref().unwrap_or("none")),
            quoted(&instance.label),
        );
        rows.begin()
            .uuid(charge.cycle)
            .id(&instance.id)
            .id(&instance.organization)
            .period(charge.start, charge.hours)
            .number(charge.rate.total.0)
            .number(charge.amount.0)
            .uuid(charge.debit.as_ref().map(|debit| debit.id))
            .text(metadata);
    }
    rows
}

/// The rows of meters that all begin, or all move.
pub(in crate::billing) fn meters(backend: DbBackend, fields: Fields, meters: &[MeterRow]) -> Rows {
    let mut rows = Rows::new(backend, fields, meters.len());
    for meter in meters {
        rows.begin()
            .id(&meter.organization)
            .number(meter.billed_through)
            .number(meter.carry.0)
            .number(meter.rate.map(|rate| rate.total.0))
            .number(meter.rate.map(|rate| rate.backup.0))
            .maybe_text(meter.rate_changes.as_deref())
            .number(meter.seen_at)
            .id(&meter.instance);
        if fields.len() > NEW_METERS.len() {
            rows.number(meter.billed_through_before);
        }
    }
    rows
}

pub(in crate::billing) fn anchors(backend: DbBackend, anchors: &[AnchorRow]) -> Rows {
    let mut rows = Rows::new(backend, ANCHORS, anchors.len());
    for anchor in anchors {
        rows.begin().instant(anchor.after).id(&anchor.instance).guard(anchor.before);
    }
    rows
}

pub(in crate::billing) fn repairs(backend: DbBackend, repairs: &[RepairRow]) -> Rows {
    let mut rows = Rows::new(backend, REPAIRS, repairs.len());
    for repair in repairs {
        rows.begin().id(&repair.instance).number(repair.since).number(repair.until);
    }
    rows
}

pub(in crate::billing) fn holds(backend: DbBackend, seen_at: Micros, holds: &[HoldRow<'_>]) -> Rows {
    let mut rows = Rows::new(backend, HOLDS, holds.len());
    for hold in holds {
        rows.begin()
            .id(&hold.instance.id)
            .id(&hold.instance.organization)
            .text(hold.instance.label.clone())
            .text(hold.reason.to_owned())
            .text(hold.detail.clone())
            .number(hold.hours)
            .number(hold.amount.map(|amount| amount.0))
            .maybe_text(hold.currency.as_ref().map(Currency::as_str))
            .number(seen_at)
            .number(seen_at);
    }
    rows
}

pub(in crate::billing) fn seen_rates(backend: DbBackend, seen: &[&SeenRate]) -> Rows {
    let mut rows = Rows::new(backend, SEEN_RATES, seen.len());
    for SeenRate { plan, backups, seen_at, rate } in seen {
        rows.begin()
            .text(plan.clone())
            .text(backups.as_str().to_owned())
            .number(*seen_at)
            .number(rate.total.0)
            .number(rate.backup.0);
    }
    rows
}

pub(in crate::billing) fn wallets(backend: DbBackend, wallets: &[WalletRow]) -> Rows {
    let mut rows = Rows::new(backend, WALLETS, wallets.len());
    for wallet in wallets {
        rows.begin().number(wallet.after.0).id(&wallet.wallet).number(wallet.before.0);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_instant_text_has_microseconds() {
        for (micros, text) in [
            (0, Some("1970-01-01T00:00:00.000000+00:00")),
            (1_767_225_599_000_001, Some("2025-12-31T23:59:59.000001+00:00")),
            (-1, Some("1969-12-31T23:59:59.999999+00:00")),
            (i64::MAX, None),
        ] {
            assert_eq!(instant(micros).as_deref(), text);
        }
    }
}
