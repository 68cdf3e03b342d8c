//! The differences between PostgreSQL and SQLite in the queries of the audit.

use sea_orm::DbBackend;

use crate::billing::{is_amount, micros, milliseconds};
use billing_store::SQLITE_NOW;

/// The SQL dialect of the audit's queries.
#[derive(Clone, Copy)]
pub(super) struct Dialect {
    pub(super) sqlite: bool,
}

impl Dialect {
    fn backend(self) -> DbBackend {
        if self.sqlite { DbBackend::Sqlite } else { DbBackend::Postgres }
    }

    /// The text for this dialect.
    pub(super) fn choose(self, sqlite: String, postgres: String) -> String {
        if self.sqlite { sqlite } else { postgres }
    }

    /// Where the charge `c` ends.
    pub(super) fn end(self) -> String {
        let sqlite = "(c.period_start + c.hours * 3600000000)".to_owned();
        self.choose(sqlite, "(c.period_start + c.hours * interval '1 hour')".to_owned())
    }

    /// The whole hours from one instant of ours to a later one.
    pub(super) fn hours_between(self, from: &str, until: &str) -> String {
        let postgres = format!("ceil(date_part('epoch', {until} - {from}) / 3600)");
        self.choose(format!("(({until} - {from} + 3599999999) / 3600000000)"), postgres)
    }

    /// An amount of the panel's in ten-thousandths.
    pub(super) fn money(self, column: &str) -> String {
        self.choose(column.to_owned(), format!("({column} * 10000)"))
    }

    /// A number whose product with another may be larger than 64 bits.
    pub(super) fn wide(self, column: &str) -> String {
        self.choose(column.to_owned(), format!("{column}::numeric"))
    }

    /// An instant of the panel's, to be compared with ours.
    pub(super) fn at(self, column: &str) -> String {
        self.choose(micros(DbBackend::Sqlite, column), column.to_owned())
    }

    /// An instant that a row does not have.
    pub(super) fn no_time(self) -> &'static str {
        if self.sqlite { "NULL" } else { "NULL::timestamptz" }
    }

    /// An instant of PostgreSQL with the panel's precision, which is a millisecond.
    pub(super) fn panels(self, instant: &str) -> String {
        self.choose(instant.to_owned(), milliseconds(instant))
    }

    /// Whether an amount of the ledger is valid, so that its sums count it.
    pub(super) fn is_amount(self, column: &str) -> String {
        is_amount(self.backend(), column)
    }

    /// A number in the metadata of the ledger row `t`, as text; NULL if it is not one.
    pub(super) fn metadata(self, key: &str) -> String {
        // SQLite would convert it to a floating-point number.
        let sqlite = format!("CASE WHEN json_valid(t.metadata) THEN t.metadata -> '$.{key}' END");
        self.choose(sqlite, format!("t.metadata ->> '{key}'"))
    }

    /// A figure in the details of the run `r`, as text.
    pub(super) fn run(self, key: &str) -> String {
        let sqlite =
            format!("CASE WHEN json_valid(r.details) THEN CAST(r.details ->> '$.{key}' AS TEXT) END");
        self.choose(format!("({sqlite})"), format!("(r.details ->> '{key}')"))
    }

    /// A decimal number in a text as ten-thousandths, exactly; NULL if it is not one.
    pub(super) fn amount_of_text(self, text: &str) -> String {
        let whole = format!("substr({text}, 1, instr({text} || '.', '.') - 1)");
        let fraction = format!("rtrim(substr({text}, instr({text} || '.', '.') + 1), '0')");
        let sqlite = format!(
            "CASE WHEN {text} NOT GLOB '*[^-.0-9]*' AND length({whole}) BETWEEN 1 AND 16 AND length({fraction}) <= 4
                  THEN CAST({whole} || substr({fraction} || '0000', 1, 4) AS INTEGER) END"
        );
        let number = "^-?[0-9]{1,20}([.][0-9]{1,20})?$";
        let postgres = format!("CASE WHEN {text} ~ '{number}' THEN {text}::numeric * 10000 END");
        self.choose(sqlite, postgres)
    }

    /// The entries of a JSON object, as `key` and `value`.
    pub(super) fn each(self, object: &str) -> String {
        self.choose(format!("json_each({object})"), format!("jsonb_each({object})"))
    }

    /// A value of the entry `e`, as text; NULL if there is none.
    pub(super) fn entry(self, key: &str) -> String {
        let sqlite = format!("(CASE WHEN e.type = 'object' THEN CAST(e.value ->> '$.{key}' AS TEXT) END)");
        self.choose(sqlite, format!("(e.value ->> '{key}')"))
    }

    /// A count in the entry `e`.
    pub(super) fn figure(self, key: &str) -> String {
        self.count_of_text(&self.entry(key))
    }

    /// A decimal number in the entry `e`, in ten-thousandths.
    pub(super) fn decimal(self, key: &str) -> String {
        self.amount_of_text(&self.entry(key))
    }

    /// A count in a text; NULL if it is not one.
    pub(super) fn count_of_text(self, text: &str) -> String {
        let sqlite = format!("CASE WHEN {text} NOT GLOB '*[^0-9]*' THEN CAST({text} AS INTEGER) END");
        self.choose(sqlite, format!("CASE WHEN {text} ~ '^[0-9]{{1,20}}$' THEN {text}::numeric END"))
    }

    /// Where the next charge of the instance `i` with the meter `m` begins: the same rule as in `billing::panel_time`.
    pub(super) fn start(self) -> String {
        let (billed, created) = (self.at("i.last_billed_at"), self.at("i.created_at"));
        let a_second_later = self.a_second_after(&billed);
        let later = if self.sqlite { "max" } else { "greatest" };
        format!(
            "CASE WHEN m.billed_through IS NOT NULL THEN {later}(coalesce({billed}, m.billed_through), m.billed_through)
                  WHEN {a_second_later} <= {created} THEN {created}
                  ELSE coalesce({billed}, {created}) END"
        )
    }

    /// The panel's anchor: up to where it has billed the instance `i`.
    pub(super) fn anchor(self) -> String {
        self.at("coalesce(i.last_billed_at, i.created_at)")
    }

    /// Whether the instance `i` with the meter `m` may have been written after the batch `b`, so that the run did not see it as it is:
    /// imported, restored, or moved by the panel. PostgreSQL knows which transaction was the later one, whatever times an import
    /// writes. An instance whose anchor is where its charges end is as a run left it.
    pub(super) fn is_unseen(self) -> String {
        let written_later = self.choose(
            // Both times are in milliseconds: which of two in the same one was later is unknown.
            format!("coalesce({}, 0) >= b.created_at", micros(DbBackend::Sqlite, "i.updated_at")),
            "age(i.xmin) < age(b.xmin)".to_owned(),
        );
        format!(
            "(coalesce(m.deleted_at >= m.seen_at, false)
              OR ({written_later}
                  AND NOT coalesce({} = {} AND m.organization_id = i.organization_id, false)))",
            self.panels(&self.anchor()),
            self.panels("m.billed_through"),
        )
    }

    pub(super) fn a_second_after(self, instant: &str) -> String {
        self.choose(format!("({instant} + 1000000)"), format!("({instant} + interval '1 second')"))
    }

    pub(super) fn an_hour_before(self, instant: &str) -> String {
        self.choose(format!("{instant} - 3600000000"), format!("{instant} - interval '1 hour'"))
    }

    pub(super) fn now(self) -> &'static str {
        if self.sqlite { SQLITE_NOW } else { "now()" }
    }
}
