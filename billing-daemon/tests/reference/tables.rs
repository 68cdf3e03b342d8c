//! The page of the tables, from the statements of the migrations; the meaning of a column is the documentation of its entity.

use std::collections::BTreeMap;

use super::{markdown, repository, source};

const INTRODUCTION: &str = "\
# Tables that the daemon adds

`billing-daemon migrate up` creates these tables next to those of the panel. [The tables it works on](../tables.md) describes the \
tables of the panel. On PostgreSQL instants are `timestamptz`, on SQLite they are microseconds since 1970 in UTC. Amounts are integers \
in ten-thousandths of the currency unit; `rate` and `carry` are in 1/730 of a millionth.

";

struct Table {
    name: String,
    comment: String,
    columns: Vec<Column>,
}

struct Column {
    name: String,
    kind: String,
    nullable: bool,
}

pub(crate) fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for folder in ["migration/src/sql/billing", "billing-store/src/migrations/sql/scheduler"] {
        let postgres = tables(&source(&format!("{folder}_postgres.sql")));
        let sqlite = tables(&source(&format!("{folder}_sqlite.sql")));
        let sqlite: BTreeMap<_, _> = sqlite.iter().map(|table| (table.name.as_str(), table)).collect();
        assert!(!postgres.is_empty(), "{folder}: no table in the form that this test reads");
        for table in &postgres {
            page += &section(table, sqlite.get(table.name.as_str()).copied());
        }
    }
    page
}

fn section(table: &Table, sqlite: Option<&Table>) -> String {
    let meanings = meanings(&table.name);
    let rows: Vec<_> = table
        .columns
        .iter()
        .map(|column| {
            let other = sqlite.and_then(|table| table.columns.iter().find(|other| other.name == column.name));
            vec![
                markdown::code(&column.name),
                format!("{}{}", column.kind, if column.nullable { ", or NULL" } else { "" }),
                other.map_or_else(|| "-".to_owned(), |other| other.kind.clone()),
                // Of an entity, `None` is what the database calls NULL.
                meanings
                    .get(&column.name)
                    .map(|text| markdown::sentence(&text.replace("`None`", "NULL")))
                    .unwrap_or_default(),
            ]
        })
        .collect();
    let comment = if table.comment.is_empty() {
        String::new()
    } else {
        format!("{}\n\n", markdown::sentence(&table.comment))
    };
    let heads = ["column", "PostgreSQL", "SQLite", "meaning"];
    format!("## {}\n\n{comment}{}", table.name, markdown::table(&heads, &rows))
}

/// The tables of a file, each with the comment above it.
fn tables(sql: &str) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut lines = sql.lines();
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix("--") {
            comment.push(text.trim());
        } else if let Some(name) = line.strip_prefix("CREATE TABLE IF NOT EXISTS ") {
            let body: Vec<_> = lines.by_ref().take_while(|line| !line.starts_with(')')).collect();
            tables.push(Table {
                name: name.trim_end_matches('(').trim().to_owned(),
                comment: comment.join(" "),
                columns: body.iter().filter_map(|line| column(line)).collect(),
            });
            comment.clear();
        } else {
            comment.clear();
        }
    }
    tables
}

/// A line such as `    hours integer NOT NULL CHECK (hours > 0),`; lines of constraints are none.
fn column(line: &str) -> Option<Column> {
    let definition =
        line.strip_prefix("    ").filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))?;
    let (name, rest) = definition.trim_end_matches(',').split_once(' ')?;
    let ends = [" NOT ", " PRIMARY", " DEFAULT", " CHECK", " GENERATED", " REFERENCES", " UNIQUE"];
    let end = ends.iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
    let nullable = !rest.contains("NOT NULL") && !rest.contains("PRIMARY KEY");
    Some(Column { name: name.to_owned(), kind: rest[..end].trim().to_owned(), nullable })
}

/// The documentation of the fields of an entity, where it has any.
fn meanings(table: &str) -> BTreeMap<String, String> {
    let path = format!("billing-entities/src/{table}.rs");
    let mut meanings = BTreeMap::new();
    if !repository().join(&path).exists() {
        return meanings;
    }
    let mut documentation = String::new();
    for line in source(&path).lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            documentation = format!("{documentation} {}", text.trim());
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) {
            meanings.insert(name.to_owned(), std::mem::take(&mut documentation));
        } else if !line.starts_with("#[") {
            documentation.clear();
        }
    }
    meanings
}
