//! What the tests of the sections share: a registry, and the check of a text against its diagnostics.

use std::{ffi::OsString, path::Path};

use billing_scheduler::Registry;
use chrono::{DateTime, TimeZone, Utc};
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::Value;

use super::{Config, Diagnostic, environment::Environment, schema};

pub(super) const SHIPPED: &str = include_str!("../../shipped/jobs.toml");

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(dead_code, reason = "only the types are of interest")]
struct Billing {
    max_catch_up_hours: Option<u32>,
    daily_backup_factor: Option<String>,
    batch_instances: Option<u32>,
    connections: Option<u32>,
    spike_factor: Option<String>,
    spike_floor: Option<String>,
    hand_back_after: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only the types are of interest")]
struct Greet {
    name: String,
    #[serde(default)]
    times: Vec<u32>,
    #[serde(default)]
    style: Style,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Style {
    bold: bool,
    size: u8,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nought {}

pub(super) fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.declare::<Billing>("billing").schema(|| schema_for!(Billing).to_value());
    registry.declare::<Greet>("greet").schema(|| schema_for!(Greet).to_value());
    registry.declare::<Nought>("stale-daemons").schema(|| schema_for!(Nought).to_value());
    for kind in ["audit", "heartbeat", "prune-history"] {
        registry.declare::<Nought>(kind);
    }
    registry.declare::<billing_jobs::PrepaidParams>("prepaid");
    registry.declare::<billing_jobs::DeliverParams>("deliver");
    registry
}

pub(super) fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 3, 1, 12, 0, 0).single().expect("no ambiguity in UTC")
}

pub(super) fn instant(text: &str) -> DateTime<Utc> {
    text.parse().expect("an RFC 3339 instant")
}

pub(super) fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<Diagnostic>> {
    let lookup = |name: &str| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
    };
    let environment = Environment::load(lookup, Path::new("/nowhere"), None).expect("readable");
    Config::load(text, "jobs.toml", &environment, &registry(), now())
}

pub(super) fn lines(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(ToString::to_string).collect()
}

/// Asserts that `text` gives exactly these diagnostics.
#[track_caller]
pub(super) fn check_with(text: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let found = load(text, variables).err().map(|problems| lines(&problems)).unwrap_or_default();
    assert_eq!(found, expected, "{text}");
    check_schema(text, &found);
}

/// Mistakes that a schema cannot find: they depend on other keys, the time or the time zones.
const BEYOND_A_SCHEMA: [&str; 30] = [
    "environment: ",
    "`backoff` is longer than",
    "must be at least 3s",
    "the database URL is malformed",
    "a period must be a whole number of seconds",
    "an offset must be a whole number of seconds",
    "must be greater than zero",
    "never comes",
    "unknown time zone",
    "has a space in its list",
    "is the name of a day of the week",
    "is not within",
    "`misfire-grace` must be at least",
    "whole second, not",
    "not 2026-02-30",
    "`not-after` is before",
    "has no effect on a single `at`",
    "`misfire-grace` is shorter",
    "`jitter` is longer",
    "requires `cron`: clock changes",
    "already",
    "has no run",
    "invalid URL",
    "invalid number: ",
    "`token` is not set",
    "no one can sign in",
    "must not listen for other hosts",
    "cannot be combined with `token`",
    "invalid path `/api`",
    "invalid header name",
];

/// Asserts that the schema rejects `text` if a schema can find its mistakes, and only if the daemon rejects it.
#[track_caller]
pub(super) fn check_schema(text: &str, refusals: &[String]) {
    // The schema rejects a file without jobs, and accepts one without an enabled job.
    if refusals.iter().any(|refusal| refusal.contains("no job is enabled")) {
        return;
    }
    let Ok(file) = toml::from_str::<toml::Table>(text.trim_start_matches('\u{feff}')) else { return };
    let accepted = jsonschema::is_valid(&schema(&registry()), &to_json(toml::Value::Table(file)));
    let beyond = |refusal: &String| BEYOND_A_SCHEMA.iter().any(|part| refusal.contains(part));
    assert_eq!(accepted, refusals.iter().all(beyond), "{text}: {refusals:?}");
}

/// Converts to JSON, with strings for times.
fn to_json(value: toml::Value) -> Value {
    match value {
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(to_json).collect(),
        toml::Value::Table(entries) => {
            entries.into_iter().map(|(key, value)| (key, to_json(value))).collect()
        }
        other => serde_json::to_value(other).expect("the rest is JSON, too"),
    }
}

#[track_caller]
pub(super) fn check(text: &str, expected: &[&str]) {
    check_with(text, &[], expected);
}

/// Returns a job with `lines`, which begin in line 4.
pub(super) fn job(lines: &str) -> String {
    format!("[[job]]\nname = \"a\"\nkind = \"stale-daemons\"\n{lines}")
}

/// Returns a billing job with this schedule, which is in line 4.
pub(super) fn billing(schedule: &str) -> String {
    format!("[[job]]\nname = \"billing\"\nkind = \"billing\"\nschedule = {schedule}\n")
}

pub(super) const HOURLY: &str = "schedule = { every = \"1h\" }\n";
