//! The results as JSON and as tables.

use std::{fmt::Write as _, fs, path::Path};

use serde::Serialize;
use serde_json::{Value, json};

/// One measurement: of one engine, in one round.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) engine: String,
    pub(crate) round: u32,
    pub(crate) values: Value,
}

impl Row {
    pub(crate) fn new(case: &str, engine: String, round: u32, values: impl Serialize) -> Self {
        Self { case: case.to_owned(), engine, round, values: json!(values) }
    }
}

/// Writes every measurement to a file.
pub(crate) fn write_json(path: &Path, rows: &[Row]) {
    let text = serde_json::to_string_pretty(rows).expect("rows are valid JSON");
    fs::write(path, text + "\n").unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// Returns one Markdown table per case: of each engine the median of the rounds, and the sum of what was lost or repeated.
pub(crate) fn tables(rows: &[Row]) -> String {
    let mut text = String::new();
    for case in distinct(rows.iter().map(|row| row.case.as_str())) {
        let of_case: Vec<_> = rows.iter().filter(|row| row.case == case).collect();
        let Some(columns) = of_case[0].values.as_object() else { continue };
        let names: Vec<_> = columns.keys().map(String::as_str).collect();
        let _ = writeln!(
            text,
            "\n{case}\n\n| engine | {} |\n|---|{}",
            names.join(" | "),
            "---|".repeat(names.len())
        );
        for engine in distinct(of_case.iter().map(|row| row.engine.as_str())) {
            let cell = |name: &&str| {
                let rounds = of_case.iter().filter(|row| row.engine == engine);
                let mut values: Vec<f64> = rounds.filter_map(|row| row.values[*name].as_f64()).collect();
                if matches!(*name, "lost" | "repeated") {
                    return values.iter().sum::<f64>().to_string();
                }
                values.sort_unstable_by(f64::total_cmp);
                let middle = values.get(values.len().saturating_sub(1) / 2);
                middle.map_or("-".to_owned(), |value| format!("{}", (value * 10.0).round() / 10.0))
            };
            let cells: Vec<_> = names.iter().map(cell).collect();
            let _ = writeln!(text, "| {engine} | {} |", cells.join(" | "));
        }
    }
    text
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut distinct = Vec::new();
    for name in names {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    distinct
}
