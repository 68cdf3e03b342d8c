//! The page of jobs.toml, from its JSON Schema.

use std::process::Command;

use billing_scheduler::duration;
use serde_json::{Map, Value};

use super::markdown;

const INTRODUCTION: &str = "\
# Keys of jobs.toml

jobs.toml lists the jobs of the daemon and their schedules. `billing-daemon check` reports every mistake in it with file, line and \
column. `billing-daemon schema` prints the JSON Schema from which this page is generated; editors use it to complete and check the \
file. The file `jobs.toml` of the repository explains the keys of the usual jobs.

A *duration* is a number with a unit, or several of them: `90s`, `15m`, `1h 30m`, `30d`. Months and years are rejected, because their \
length varies. An *instant* is a date with a time and a time zone, such as `2026-12-01T00:00:00Z`.

";

pub(crate) fn page() -> String {
    let printed = Command::new(env!("CARGO_BIN_EXE_billing-daemon"))
        .arg("schema")
        .output()
        .expect("the program starts");
    assert!(printed.status.success(), "{printed:?}");
    let schema: Value = serde_json::from_slice(&printed.stdout).expect("the schema is JSON");
    let page = Page { schema: &schema };
    let mut text = INTRODUCTION.to_owned();
    for (section, of) in object(&schema["properties"]) {
        let keys = if of["type"] == "array" { page.resolve(&of["items"]) } else { &of };
        let brackets = if of["type"] == "array" { format!("[[{section}]]") } else { format!("[{section}]") };
        text += &format!("## {brackets}\n\n{}{}", paragraph(&of), page.keys(keys));
        text += &page.tables_in(keys, "###");
    }
    text += "## Tables inside a job\n\n";
    for (name, of) in object(&schema["$defs"]) {
        if !name.contains('.') && of["properties"].is_object() {
            text += &format!("### {name}\n\n{}{}", paragraph(&of), page.keys(&of));
        }
    }
    text += "## Parameters of each kind\n\nThe keys of `[job.params]` depend on the kind of the job.\n\n";
    let conditions =
        page.resolve(&schema["properties"]["job"]["items"])["allOf"].as_array().into_iter().flatten();
    for condition in conditions {
        let Some(kind) = condition["if"]["properties"]["kind"]["const"].as_str() else { continue };
        let parameters = page.resolve(&condition["then"]["properties"]["params"]);
        let keys = if object(&parameters["properties"]).is_empty() {
            "This kind has no parameters.\n\n".to_owned()
        } else {
            page.keys(parameters) + &page.tables_in(parameters, "####")
        };
        text += &format!("### {kind}\n\n{}{keys}", paragraph(parameters));
    }
    text
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn paragraph(of: &Value) -> String {
    of["description"].as_str().map(|text| format!("{}\n\n", markdown::sentence(text))).unwrap_or_default()
}

struct Page<'s> {
    schema: &'s Value,
}

impl Page<'_> {
    /// What a `$ref` refers to, or else the value.
    fn resolve<'v>(&'v self, value: &'v Value) -> &'v Value {
        let name = value["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/"));
        name.map_or(value, |name| &self.schema["$defs"][name])
    }

    fn keys(&self, table: &Value) -> String {
        let required = table["required"].as_array().cloned().unwrap_or_default();
        let rows: Vec<_> = object(&table["properties"])
            .iter()
            .map(|(key, of)| {
                let resolved = self.resolve(of);
                let default = if required.contains(&Value::from(key.as_str())) {
                    "required".to_owned()
                } else {
                    toml(&of["default"])
                };
                let description =
                    of["description"].as_str().or(resolved["description"].as_str()).unwrap_or_default();
                vec![markdown::code(key), self.kind(of), default, markdown::text(description)]
            })
            .collect();
        markdown::table(&["key", "value", "default", "meaning"], &rows)
    }

    /// The lists of keys of the tables inside of a table without a separate section.
    fn tables_in(&self, table: &Value, heading: &str) -> String {
        let mut text = String::new();
        for (key, property) in object(&table["properties"]) {
            let of = if property["type"] == "array" { &property["items"] } else { &property };
            let inner = self.resolve(of);
            let has_section = of["$ref"].as_str().is_some_and(|name| !name.contains('.'));
            if !has_section && !object(&inner["properties"]).is_empty() {
                text += &format!("{heading} {key}\n\n{}{}", paragraph(&property), self.keys(inner));
                text += &self.tables_in(inner, &format!("{heading}#"));
            }
        }
        text
    }

    /// The values that the schema accepts, in a few words.
    fn kind(&self, of: &Value) -> String {
        if let Some(name) = of["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
            let definition = &self.schema["$defs"][name];
            return if name.contains('.') || !definition["properties"].is_object() {
                self.kind(definition)
            } else {
                format!("table [{name}](#{name})")
            };
        }
        if let Some(values) = of["enum"].as_array() {
            return values.iter().map(toml).collect::<Vec<_>>().join(", ");
        }
        if !of["const"].is_null() {
            return toml(&of["const"]);
        }
        if let Some(alternatives) = of["anyOf"].as_array().or(of["oneOf"].as_array()) {
            let mut kinds: Vec<_> = alternatives.iter().map(|of| self.kind(of)).collect();
            kinds.dedup();
            return kinds.join(" or ");
        }
        match of["type"].as_str() {
            Some("string") if of["pattern"] == duration::PATTERN => "duration".to_owned(),
            Some("string") if of["format"] == "date-time" => "instant".to_owned(),
            Some("string") if of["pattern"].as_str().is_some_and(|pattern| pattern.contains("[Tt ]")) => {
                "instant".to_owned()
            }
            Some("array") => format!("list of {}", self.kind(&of["items"])),
            Some("integer") => integer(of),
            Some("object") if of["properties"].is_object() => {
                let keys: Vec<_> = object(&of["properties"]).keys().map(|key| markdown::code(key)).collect();
                format!("table with {}", keys.join(", "))
            }
            Some("object") => "table".to_owned(),
            Some(other) => other.to_owned(),
            None => String::new(),
        }
    }
}

fn integer(of: &Value) -> String {
    match (of["minimum"].as_i64(), of["maximum"].as_i64()) {
        (Some(least), Some(most)) if most < i64::from(u32::MAX) => format!("integer, {least} to {most}"),
        (Some(least), _) => format!("integer, at least {least}"),
        _ => "integer".to_owned(),
    }
}

/// A value as jobs.toml has it.
fn toml(value: &Value) -> String {
    if value.is_null() { String::new() } else { markdown::code(&value.to_string()) }
}
