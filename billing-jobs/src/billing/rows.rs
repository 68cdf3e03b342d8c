//! Lists of rows as parameters of a statement: an array for each column on PostgreSQL, one JSON array of rows on SQLite.

use std::{fmt, sync::Arc};

use sea_orm::{DbBackend, Value, sea_query::ArrayType};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::decide::{AnchorRow, ChargeRow, HoldRow, MeterRow, RepairRow, WalletRow};

/// The id of a row of the panel's. Copied without allocation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Id {
    Uuid(Uuid),
    /// SQLite takes any text for an id, and what is no UUID in its usual form must come back as it was.
    Text(Arc<str>),
}

impl Id {
    /// What stands for a missing id among others.
    const NONE: Uuid = Uuid::nil();

    fn uuid(&self) -> Uuid {
        match self {
            Self::Uuid(uuid) => *uuid,
            // There is no such row on PostgreSQL: the count of rows will tell.
            Self::Text(_) => Self::NONE,
        }
    }
}

impl From<&str> for Id {
    fn from(text: &str) -> Self {
        let mut buffer = Uuid::encode_buffer();
        match Uuid::try_parse(text) {
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut buffer) == text => Self::Uuid(uuid),
            _ => Self::Text(text.into()),
        }
    }
}

impl From<String> for Id {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => uuid.fmt(f),
            Self::Text(text) => f.pad(text),
        }
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Uuid(uuid) => uuid.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

/// What a column holds. One that may lack a value has something else stand for it in an array, which cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Id,
    MaybeId,
    Number,
    MaybeNumber,
    Text,
    MaybeText,
}

/// The columns of a list of rows, in order.
pub(super) type Fields = &'static [(&'static str, Kind)];

pub(super) const LEDGER: Fields = &[
    ("ledger", Kind::Id),
    ("organization", Kind::Id),
    ("amount", Kind::Number),
    ("currency", Kind::Text),
    ("description", Kind::Text),
    ("metadata", Kind::Text),
];
pub(super) const CHARGES: Fields = &[
    ("instance", Kind::Id),
    ("organization", Kind::Id),
    ("start", Kind::Number),
    ("hours", Kind::Number),
    ("rate", Kind::Number),
    ("amount", Kind::Number),
    ("carry", Kind::Number),
    ("ledger", Kind::MaybeId),
];
pub(super) const CYCLES: Fields = &[
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
pub(super) const METERS: Fields = &[
    ("instance", Kind::Id),
    ("organization", Kind::Id),
    ("billed_through_before", Kind::MaybeNumber),
    ("billed_through", Kind::Number),
    ("carry", Kind::Number),
    ("rate", Kind::MaybeNumber),
    ("rate_changes", Kind::MaybeText),
    ("seen_at", Kind::Number),
];
pub(super) const ANCHORS: Fields =
    &[("instance", Kind::Id), ("before", Kind::MaybeNumber), ("after", Kind::Number)];
pub(super) const REPAIRS: Fields =
    &[("instance", Kind::Id), ("since", Kind::Number), ("until", Kind::Number)];
pub(super) const HOLDS: Fields = &[
    ("instance", Kind::Id),
    ("organization", Kind::Id),
    ("label", Kind::Text),
    ("reason", Kind::Text),
    ("detail", Kind::Text),
    ("hours", Kind::Number),
    ("amount", Kind::MaybeNumber),
];
pub(super) const WALLETS: Fields = &[("wallet", Kind::Id), ("before", Kind::Number), ("after", Kind::Number)];

/// The rows of the parameters from the `first` on, as `d`, on PostgreSQL.
pub(super) fn postgres_rows(first: usize, fields: Fields) -> String {
    let mut arrays = Vec::new();
    let mut names = Vec::new();
    let mut columns = Vec::new();
    for (number, (name, kind)) in fields.iter().enumerate() {
        let (of, column) = match kind {
            Kind::Id => ("uuid", (*name).to_owned()),
            Kind::MaybeId => ("uuid", format!("nullif({name}, '{}')", Id::NONE)),
            Kind::Number => ("bigint", (*name).to_owned()),
            Kind::MaybeNumber => ("bigint", format!("nullif({name}, {})", i64::MAX)),
            Kind::Text => ("text", (*name).to_owned()),
            Kind::MaybeText => ("text", format!("nullif({name}, '')")),
        };
        arrays.push(format!("${}::{of}[]", first + number));
        names.push(*name);
        columns.push(format!("{column} AS {name}"));
    }
    let (columns, arrays, names) = (columns.join(", "), arrays.join(", "), names.join(", "));
    format!("(SELECT {columns} FROM unnest({arrays}) AS a({names})) AS d")
}

/// The rows of the parameter with this number, as `d`, on SQLite.
pub(super) fn sqlite_rows(number: usize, fields: Fields) -> String {
    let columns: Vec<String> =
        fields.iter().enumerate().map(|(place, (name, _))| format!("value ->> {place} AS {name}")).collect();
    format!("(SELECT {} FROM json_each(?{number})) AS d", columns.join(", "))
}

/// Rows on their way into a statement.
pub(super) enum Rows {
    Arrays { fields: Fields, columns: Vec<Vec<Value>>, filled: usize },
    Json { text: String, count: usize, first: bool },
}

impl Rows {
    pub(super) fn new(backend: DbBackend, fields: Fields, capacity: usize) -> Self {
        if backend == DbBackend::Sqlite {
            Self::Json { text: "[".to_owned(), count: 0, first: true }
        } else {
            let columns = fields.iter().map(|_| Vec::with_capacity(capacity)).collect();
            Self::Arrays { fields, columns, filled: 0 }
        }
    }

    /// Begins a row; its columns follow in order.
    fn begin(&mut self) -> &mut Self {
        match self {
            Self::Arrays { filled, .. } => *filled = 0,
            Self::Json { text, count, first } => {
                text.push_str(if *count == 0 { "[" } else { "],[" });
                *count += 1;
                *first = true;
            }
        }
        self
    }

    fn push(&mut self, value: impl FnOnce() -> Value, json: impl FnOnce(&mut String)) -> &mut Self {
        match self {
            Self::Arrays { columns, filled, .. } => {
                columns[*filled].push(value());
                *filled += 1;
            }
            Self::Json { text, first, .. } => {
                if !std::mem::take(first) {
                    text.push(',');
                }
                json(text);
            }
        }
        self
    }

    fn id(&mut self, id: &Id) -> &mut Self {
        self.push(
            || id.uuid().into(),
            |json| match id {
                Id::Uuid(uuid) => quote_uuid(json, *uuid),
                Id::Text(text) => quote(json, text),
            },
        )
    }

    fn uuid(&mut self, id: Option<Uuid>) -> &mut Self {
        self.push(
            || id.unwrap_or(Id::NONE).into(),
            |json| match id {
                Some(uuid) => quote_uuid(json, uuid),
                None => json.push_str("null"),
            },
        )
    }

    fn number(&mut self, number: impl Into<Option<i64>>) -> &mut Self {
        let number = number.into();
        self.push(
            || number.unwrap_or(i64::MAX).into(),
            |json| match number {
                Some(number) => write(json, format_args!("{number}")),
                None => json.push_str("null"),
            },
        )
    }

    fn text(&mut self, text: String) -> &mut Self {
        match self {
            Self::Arrays { .. } => self.push(|| text.into(), |_| {}),
            Self::Json { .. } => self.push(|| Value::Bool(None), |json| quote(json, &text)),
        }
    }

    fn maybe_text(&mut self, text: Option<&str>) -> &mut Self {
        self.push(
            || text.unwrap_or_default().into(),
            |json| match text {
                Some(text) => quote(json, text),
                None => json.push_str("null"),
            },
        )
    }

    /// The parameters.
    pub(super) fn values(self) -> Vec<Value> {
        match self {
            Self::Json { mut text, count, .. } => {
                text.push_str(if count == 0 { "]" } else { "]]" });
                vec![text.into()]
            }
            Self::Arrays { fields, columns, .. } => {
                let array = |((_, kind), values): (&(&str, Kind), Vec<Value>)| {
                    let of = match kind {
                        Kind::Id | Kind::MaybeId => ArrayType::Uuid,
                        Kind::Number | Kind::MaybeNumber => ArrayType::BigInt,
                        Kind::Text | Kind::MaybeText => ArrayType::String,
                    };
                    Value::Array(of, Some(Box::new(values)))
                };
                fields.iter().zip(columns).map(array).collect()
            }
        }
    }
}

fn write(text: &mut String, arguments: fmt::Arguments<'_>) {
    fmt::Write::write_fmt(text, arguments).expect("a string takes everything");
}

fn quote_uuid(json: &mut String, uuid: Uuid) {
    json.push('"');
    json.push_str(uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
    json.push('"');
}

/// `text` as a string of JSON.
fn quote(json: &mut String, text: &str) {
    json.push('"');
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c == '"' || c == '\\' || c < ' ') {
        json.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'"' => json.push_str("\\\""),
            b'\\' => json.push_str("\\\\"),
            control => write(json, format_args!("\\u{control:04x}")),
        }
        rest = &rest[at + 1..];
    }
    json.push_str(rest);
    json.push('"');
}

pub(super) fn ledger(backend: DbBackend, charges: &[ChargeRow<'_>]) -> Rows {
    let mut rows = Rows::new(backend, LEDGER, charges.len());
    for charge in charges.iter().filter(|charge| charge.ledger.is_some()) {
        let instance = charge.instance;
        let description = format!("VPS Hourly Billing - {} ({}h)", instance.label, charge.hours);
        let metadata = format!(
            r#"{{"balance_before":{},"balance_after":{}}}"#,
            charge.balance_before, charge.balance_after
        );
        rows.begin()
            .uuid(charge.ledger)
            .id(&instance.organization)
            .number(charge.amount.0)
            .text(charge.wallet.currency.clone())
            .text(description)
            .text(metadata);
    }
    rows
}

pub(super) fn charges(backend: DbBackend, charges: &[ChargeRow<'_>]) -> Rows {
    let mut rows = Rows::new(backend, CHARGES, charges.len());
    for charge in charges {
        rows.begin()
            .id(&charge.instance.id)
            .id(&charge.instance.organization)
            .number(charge.start)
            .number(charge.hours)
            .number(charge.rate.0)
            .number(charge.amount.0)
            .number(charge.carry.0)
            .uuid(charge.ledger);
    }
    rows
}

pub(super) fn cycles(backend: DbBackend, charges: &[ChargeRow<'_>]) -> Rows {
    let mut rows = Rows::new(backend, CYCLES, charges.len());
    for charge in charges.iter().filter(|charge| charge.cycle.is_some()) {
        let instance = charge.instance;
        let mut metadata = String::with_capacity(192);
        write(
            &mut metadata,
            format_args!(
                r#"{{"hours_charged":{},"elapsed_hours":{},"base_hourly_rate":{},"backup_hourly_rate":{},"backup_frequency":"#,
                charge.hours,
                charge.elapsed_hours,
                charge.base_rate.per_hour(6),
                charge.backup_rate.per_hour(6),
            ),
        );
        quote(&mut metadata, instance.backup_frequency.as_deref().unwrap_or("none"));
        metadata.push_str(r#","vps_label":"#);
        quote(&mut metadata, &instance.label);
        metadata.push('}');
        rows.begin()
            .uuid(charge.cycle)
            .id(&instance.id)
            .id(&instance.organization)
            .number(charge.start)
            .number(charge.hours)
            .number(charge.rate.0)
            .number(charge.amount.0)
            .uuid(charge.ledger)
            .text(metadata);
    }
    rows
}

pub(super) fn meters(backend: DbBackend, meters: &[MeterRow]) -> Rows {
    let mut rows = Rows::new(backend, METERS, meters.len());
    for meter in meters {
        rows.begin()
            .id(&meter.instance)
            .id(&meter.organization)
            .number(meter.billed_through_before)
            .number(meter.billed_through)
            .number(meter.carry.0)
            .number(meter.rate.map(|rate| rate.0))
            .maybe_text(meter.rate_changes.as_deref())
            .number(meter.seen_at);
    }
    rows
}

pub(super) fn anchors(backend: DbBackend, anchors: &[AnchorRow]) -> Rows {
    let mut rows = Rows::new(backend, ANCHORS, anchors.len());
    for anchor in anchors {
        rows.begin().id(&anchor.instance).number(anchor.before).number(anchor.after);
    }
    rows
}

pub(super) fn repairs(backend: DbBackend, repairs: &[RepairRow]) -> Rows {
    let mut rows = Rows::new(backend, REPAIRS, repairs.len());
    for repair in repairs {
        rows.begin().id(&repair.instance).number(repair.since).number(repair.until);
    }
    rows
}

pub(super) fn holds(backend: DbBackend, holds: &[HoldRow<'_>]) -> Rows {
    let mut rows = Rows::new(backend, HOLDS, holds.len());
    for hold in holds {
        rows.begin()
            .id(&hold.instance.id)
            .id(&hold.instance.organization)
            .text(hold.instance.label.clone())
            .text(hold.reason.to_owned())
            .text(hold.detail.clone())
            .number(hold.hours)
            .number(hold.amount.map(|amount| amount.0));
    }
    rows
}

pub(super) fn wallets(backend: DbBackend, wallets: &[WalletRow]) -> Rows {
    let mut rows = Rows::new(backend, WALLETS, wallets.len());
    for wallet in wallets {
        rows.begin().id(&wallet.wallet).number(wallet.before.0).number(wallet.after.0);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_comes_back_as_it_was() {
        for text in [
            "0198c1f2-6a70-7000-8000-00000000002a",
            "0198C1F2-6A70-7000-8000-00000000002A",
            "0198c1f26a7070008000-00000000002a",
            "machine 1",
            "",
        ] {
            assert_eq!(Id::from(text).to_string(), text);
        }
        assert!(matches!(Id::from("0198c1f2-6a70-7000-8000-00000000002a"), Id::Uuid(_)));
    }

    #[test]
    fn rows_for_sqlite_are_json_whatever_is_in_them() {
        for label in ["web", "a \"quoted\" \\ name", "two\nlines\u{1}", "größer 🦀", ""] {
            let mut rows = Rows::new(DbBackend::Sqlite, HOLDS, 2);
            for hours in [1, 2] {
                rows.begin().id(&label.into()).number(hours).text(label.to_owned()).number(None).uuid(None);
            }
            let values = rows.values();
            let [Value::String(Some(json))] = values.as_slice() else { panic!("{values:?} is no text") };
            let read: serde_json::Value = serde_json::from_str(json).expect("JSON");
            let row = |hours: i64| serde_json::json!([label, hours, label, null, null]);
            assert_eq!(read, serde_json::json!([row(1), row(2)]));
        }
    }
}
