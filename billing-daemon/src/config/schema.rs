//! The JSON Schema of jobs.toml, with which editors complete and check it: derived from the tables, and from the types of the
//! parameters of each kind.

use billing_jobs::BILLING_JOB;
use billing_scheduler::Registry;
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::{panel, tables::JobsFile};

/// Returns the schema of a file that names the kinds of `registry`.
#[must_use]
pub fn schema(registry: &Registry) -> Value {
    let mut schema = in_toml(SchemaGenerator::default().into_root_schema_for::<JobsFile>().to_value(), None);
    let mut definitions = schema["$defs"].as_object().cloned().unwrap_or_default();
    let kinds: Vec<_> = registry.kinds().collect();
    // Not as `dependentSchemas`, which some editors do not know.
    let mut conditions = vec![json!({
        "if": { "required": ["catch-up-limit"] },
        "then": { "properties": { "misfire": { "const": "catch-up" } }, "required": ["misfire"] },
    })];
    conditions.extend(kinds.iter().map(|kind| rules_of_kind(registry, kind, &mut definitions)));
    let job = &mut schema["properties"]["job"]["items"];
    job["properties"]["kind"]["enum"] = json!(kinds);
    job["allOf"] = conditions.into();
    schema["$defs"] = definitions.into();
    schema
}

/// Returns the rules for the jobs of `kind`. What its parameters refer to goes into `definitions`.
fn rules_of_kind(registry: &Registry, kind: &str, definitions: &mut Map<String, Value>) -> Value {
    let any_params = || json!({ "type": "object", "additionalProperties": true });
    let params = embedded(registry.schema(kind).unwrap_or_else(any_params), kind, definitions);
    let needs_params = params["required"].as_array().is_some_and(|required| !required.is_empty());
    let mut keys = Map::from_iter([("params".to_owned(), params)]);
    if kind == BILLING_JOB {
        keys.insert("name".to_owned(), json!({ "const": BILLING_JOB }));
        keys.insert("scope".to_owned(), json!({ "const": "cluster" }));
    } else {
        keys.insert("name".to_owned(), json!({ "not": { "const": BILLING_JOB } }));
    }
    if !panel::is_watched(kind) {
        keys.insert("allow-long-gaps".to_owned(), json!(false));
    }
    json!({
        "if": { "properties": { "kind": { "const": kind } }, "required": ["kind"] },
        "then": { "properties": keys, "required": if needs_params { vec!["params"] } else { vec![] } },
    })
}

/// Makes a self-contained schema a part of ours: its definitions go into `definitions`, under the name of its `owner`.
fn embedded(mut schema: Value, owner: &str, definitions: &mut Map<String, Value>) -> Value {
    if let Some(own) = schema.as_object_mut() {
        own.remove("$schema");
        own.remove("title");
        if let Some(Value::Object(further)) = own.remove("$defs") {
            let named = further.into_iter();
            definitions.extend(
                named.map(|(name, schema)| (format!("{owner}.{name}"), in_toml(schema, Some(owner)))),
            );
        }
    }
    in_toml(schema, Some(owner))
}

/// Returns the schema for values of TOML: without null, and with the limits of numbers in place of their formats. References lead
/// to the definitions of `owner`.
fn in_toml(schema: Value, owner: Option<&str>) -> Value {
    let mut entries = match schema {
        Value::Object(entries) => entries,
        Value::Array(values) => return values.into_iter().map(|value| in_toml(value, owner)).collect(),
        other => return other,
    };
    entries.retain(|key, value| !(key == "default" && value.is_null()));
    let mut entries: Map<_, _> =
        entries.into_iter().map(|(key, value)| (key, in_toml(value, owner))).collect();
    let reference = entries.get("$ref").and_then(|name| name.as_str()?.strip_prefix("#/$defs/"));
    if let Some((owner, name)) = owner.zip(reference) {
        let name = format!("#/$defs/{owner}.{name}");
        entries.insert("$ref".to_owned(), name.into());
    }
    let limits = match entries.get("format").and_then(Value::as_str) {
        Some("uint" | "uint64") => Some((None, Some(i64::MAX))),
        Some("uint32") => Some((None, Some(u32::MAX.into()))),
        Some("int32") => Some((Some(i32::MIN.into()), Some(i32::MAX.into()))),
        Some("uint8" | "uint16" | "int8" | "int16" | "int64") => Some((None, None)),
        _ => None,
    };
    if let Some((min, max)) = limits {
        entries.remove("format");
        for (key, limit) in [("minimum", min), ("maximum", max)] {
            if let Some(limit) = limit {
                entries.entry(key).or_insert(limit.into());
            }
        }
    }
    without_null(&mut entries);
    Value::Object(entries)
}

/// Removes null, which an optional field accepts in JSON.
fn without_null(entries: &mut Map<String, Value>) {
    if let Some(Value::Array(words)) = entries.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    if let Some([one, null]) = entries.get("type").and_then(Value::as_array).map(Vec::as_slice)
        && null == "null"
    {
        let one = one.clone();
        entries.insert("type".to_owned(), one);
    }
    if let Some([one, null]) = entries.get("anyOf").and_then(Value::as_array).map(Vec::as_slice)
        && *null == json!({ "type": "null" })
    {
        let one = one.as_object().cloned().unwrap_or_default();
        entries.remove("anyOf");
        for (key, value) in one {
            entries.entry(key).or_insert(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{HOURLY, SHIPPED, check_schema, job, lines, load, registry};
    use super::*;
    use crate::{
        config::Diagnostic,
        plugins::{Plugins, kinds_for_validation},
    };

    #[test]
    fn committed_schema_is_current() {
        let printed = format!("{:#}", schema(&kinds_for_validation(&Plugins::none())));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/shipped/jobs.schema.json");
            std::fs::write(file, format!("{printed}\n")).expect("the schema is written");
            return;
        }
        let committed = include_str!("../../shipped/jobs.schema.json");
        assert!(printed == committed.trim_end(), "run `billing-daemon schema > jobs.schema.json`");
        assert!(SHIPPED.starts_with("#:schema ./jobs.schema.json\n"));
    }

    #[test]
    fn schema_defaults_are_the_real_ones() {
        let schema = schema(&registry());
        let properties = &schema["properties"];
        let keys = |of: &Value| -> Vec<(String, String)> {
            let entries = of["properties"].as_object().expect("a table").iter();
            let defaults =
                entries.filter_map(|(key, of)| Some((key.clone(), of.get("default")?.to_string())));
            defaults.collect()
        };
        let cron = "schedule = { cron = \"@hourly\" }\n";
        let without = job(cron);
        let mut tried = 0;
        let mut same = |text: String| {
            // The limit requires that the job catches up.
            let text = text.replace("catch-up-limit", "misfire = \"catch-up\"\ncatch-up-limit");
            let without = if text.contains("catch-up-limit") {
                format!("{without}misfire = \"catch-up\"")
            } else {
                without.clone()
            };
            let show = |text: &str| {
                format!("{:?}", load(text, &[]).map_err(|problems| lines(&problems)).expect("right"))
            };
            assert_eq!(show(&text).replace("10:8", ""), show(&without), "{text}");
            tried += 1;
        };
        for (key, default) in keys(&properties["daemon"]) {
            same(format!("{without}[daemon]\n{key} = {default}"));
        }
        let item = &properties["job"]["items"];
        for (key, default) in keys(item).iter().filter(|(key, _)| key != "allow-long-gaps") {
            same(format!("{without}{key} = {default}"));
        }
        for (key, default) in keys(&item["properties"]["retry"]) {
            same(format!("{without}retry = {{ {key} = {default} }}"));
        }
        for (key, default) in keys(&schema["$defs"]["cron"]) {
            same(without.replace(" }", &format!(", {key} = {default} }}")));
        }
        assert!(tried >= 15, "{tried} defaults");
    }

    #[test]
    fn every_key_of_schema_is_read() {
        let schema = schema(&registry());
        let keys = |table: &Value| {
            table["properties"].as_object().expect("a table").keys().cloned().collect::<Vec<_>>()
        };
        let is_read = |key: &str, text: String| {
            let problems = load(&text, &[]).expect_err(&text);
            let reported = |problem: &Diagnostic| problem.message.starts_with(&format!("`{key}` must be"));
            assert!(problems.iter().any(reported), "{key}: {problems:?}");
        };
        let tables = &schema["properties"];
        let item = &tables["job"]["items"];
        // No key has a floating-point value.
        for (section, table) in [("daemon", &tables["daemon"]), ("http", &tables["http"])] {
            for key in keys(table) {
                is_read(&key, format!("[{section}]\n{key} = 1.5"));
            }
        }
        let console = &tables["http"]["properties"]["console"];
        for key in keys(console) {
            is_read(&key, format!("[http.console]\n{key} = 1.5"));
        }
        for key in keys(&console["properties"]["proxy"]) {
            is_read(&key, format!("[http.console.proxy]\n{key} = 1.5"));
        }
        for key in keys(item).iter().filter(|key| *key != "schedule") {
            let given = [("name", "'a'"), ("kind", "'stale-daemons'"), ("schedule", "{ every = '1h' }")];
            let given = given.iter().filter(|(given, _)| given != key);
            let given: Vec<_> = given.map(|(key, value)| format!("{key} = {value}\n")).collect();
            let given = given.concat();
            is_read(key, format!("[[job]]\n{given}{key} = 1.5"));
        }
        for key in keys(&item["properties"]["retry"]) {
            is_read(&key, job(&format!("{HOURLY}retry = {{ {key} = 1.5 }}")));
        }
        for key in keys(&schema["$defs"]["ping"]) {
            is_read(&key, job(&format!("{HOURLY}ping = {{ {key} = 1.5 }}")));
        }
        for (kind, value) in [("every", "'1h'"), ("cron", "'@daily'"), ("at", "2027-01-01T00:00:00Z")] {
            for key in keys(&schema["$defs"][kind]) {
                let given = if key == kind { String::new() } else { format!("{kind} = {value}, ") };
                is_read(&key, job(&format!("schedule = {{ {given}{key} = 1.5 }}")));
            }
        }
        check_schema(SHIPPED, &[]);
    }
}
