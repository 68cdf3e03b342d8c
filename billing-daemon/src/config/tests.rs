//! What an operator reads when `jobs.toml` is wrong: rows of a text and the diagnostics that it gives.

use std::{collections::BTreeMap, ffi::OsString, path::Path, time::Duration};

use billing_kinds::{Ping, Secret};
use billing_scheduler::{Dst, DstFold, DstGap, Misfire, Registry, Retry, Schedule, Scope, duration};
use chrono::{DateTime, TimeZone, Utc};
use proptest::prelude::*;
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{BUILT_IN, Config, schema};
use crate::{
    config::{Diagnostic, environment::Environment},
    plugins::{Plugins, kinds_for_validation},
};

const SHIPPED: &str = include_str!("../../shipped/jobs.toml");

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

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.declare::<Billing>("billing").schema(|| schema_for!(Billing).to_value());
    registry.declare::<Greet>("greet").schema(|| schema_for!(Greet).to_value());
    registry.declare::<Nought>("stale-daemons").schema(|| schema_for!(Nought).to_value());
    for kind in ["audit", "heartbeat", "prune-history"] {
        registry.declare::<Nought>(kind);
    }
    registry
}

fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 3, 1, 12, 0, 0).single().expect("no ambiguity in UTC")
}

fn instant(text: &str) -> DateTime<Utc> {
    text.parse().expect("an RFC 3339 instant")
}

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<Diagnostic>> {
    let lookup = |name: &str| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
    };
    let environment = Environment::load(lookup, Path::new("/nowhere"), None).expect("readable");
    Config::load(text, "jobs.toml", &environment, &registry(), now())
}

fn lines(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(ToString::to_string).collect()
}

/// Asserts that `text` gives exactly these diagnostics.
#[track_caller]
fn check_with(text: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let found = load(text, variables).err().map(|problems| lines(&problems)).unwrap_or_default();
    assert_eq!(found, expected, "{text}");
    check_schema(text, &found);
}

/// What only whoever knows the whole file, the time or the database of time zones can say.
const BEYOND_A_SCHEMA: [&str; 24] = [
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
    "has nothing to catch up",
    "`misfire-grace` is shorter",
    "`jitter` is longer",
    "goes with `cron` only: no clock changes",
    "already",
    "has no run",
    "invalid URL",
    "this number is too large, or none",
];

/// Asserts that an editor that has our schema refuses `text` if it can, and only if the daemon does.
#[track_caller]
fn check_schema(text: &str, refusals: &[String]) {
    // A file without any job is refused, one without an enabled job is not.
    if refusals.iter().any(|refusal| refusal.contains("no job is enabled")) {
        return;
    }
    let Ok(file) = toml::from_str::<toml::Table>(text.trim_start_matches('\u{feff}')) else { return };
    let accepted = jsonschema::is_valid(&schema(&registry()), &as_editors_see(toml::Value::Table(file)));
    let beyond = |refusal: &String| BEYOND_A_SCHEMA.iter().any(|part| refusal.contains(part));
    assert_eq!(accepted, refusals.iter().all(beyond), "{text}: {refusals:?}");
}

/// The same in JSON, with texts in place of times.
fn as_editors_see(value: toml::Value) -> Value {
    match value {
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(as_editors_see).collect(),
        toml::Value::Table(entries) => {
            entries.into_iter().map(|(key, value)| (key, as_editors_see(value))).collect()
        }
        other => serde_json::to_value(other).expect("the rest is JSON, too"),
    }
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    check_with(text, &[], expected);
}

/// A job that is right but for `lines`; they begin in line 4.
fn job(lines: &str) -> String {
    format!("[[job]]\nname = \"a\"\nkind = \"stale-daemons\"\n{lines}")
}

/// A billing job with this schedule, in line 4.
fn billing(schedule: &str) -> String {
    format!("[[job]]\nname = \"billing\"\nkind = \"billing\"\nschedule = {schedule}\n")
}

#[test]
fn the_shipped_file_is_right() {
    // The parameters behind `#` are those of the kinds, which have tests of their own.
    let config = load(SHIPPED, &[]).map_err(|problems| lines(&problems)).expect("no problem");
    assert_eq!(config.warnings, []);
    assert_eq!(config.billing_interval, Some(Duration::from_hours(1)));
    assert_eq!(config.daemon.drain_timeout, Duration::from_mins(1));
    assert_eq!(config.daemon.lease_ttl, Duration::from_secs(10));
    let names: Vec<_> = config.jobs.iter().map(|(spec, _)| (spec.name.as_str(), spec.scope)).collect();
    let expected = [
        ("billing", Scope::Cluster),
        ("heartbeat", Scope::Node),
        ("stale-daemons", Scope::Cluster),
        ("prune-history", Scope::Cluster),
    ];
    assert_eq!(names, expected);
}

#[test]
fn every_key_that_the_shipped_file_shows_is_one() {
    let uncommented: Vec<_> = SHIPPED
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(setting) if setting.contains(" = ") && !setting.starts_with(' ') => setting,
            Some(header) if header.starts_with('[') && header.ends_with(']') => header,
            _ => line,
        })
        .filter(|line| !["dead-after", "keep"].iter().any(|key| line.starts_with(key)))
        .collect();
    let config = load(&uncommented.join("\n"), &[]).map_err(|problems| lines(&problems)).expect("no problem");
    let url = config.daemon.database_url.expect("it was behind a #");
    assert_eq!(url.to_string(), "postgres://billing@localhost/panel");
    let expected = json!({
        "max-catch-up-hours": 72, "daily-backup-factor": "1", "batch-instances": 5000, "connections": 2,
        "spike-factor": "3", "spike-floor": "10.00",
        "hand-back-after": "75m",
    });
    assert_eq!(config.jobs[0].1, expected);
    assert_eq!(config.http.expect("it was behind a #").listen.to_string(), "127.0.0.1:9464");
    assert!(config.jobs.iter().any(|(spec, _)| spec.kind == "audit"));
}

#[test]
fn every_key_of_a_job_arrives() {
    let text = r#"
        [[job]]
        name = "hello_1"
        kind = "greet"
        schedule = { cron = "0 30 2 * * *", timezone = "Europe/Berlin" }
        dst-gap = "skip"
        dst-fold = "last"
        not-before = 2026-12-01T01:00:00+01:00
        not-after = "2030-01-01T00:00:00Z"
        jitter = "5m"
        scope = "node"
        misfire = "catch-up"
        misfire-grace = "2h"
        catch-up-limit = 24
        run-at-start = true
        timeout = "1h 30m"
        retry = { max-attempts = 2, backoff = "1s", max-backoff = "1m", jitter-percent = 0 }
        ping = { url = { env = "PING_URL" }, fail = "https://hc-ping.com/1/fail", timeout = "3s" }
        [job.params]
        name = "Ada"
        times = [1, 0x10]
        style = { bold = true }
        [[job]]
        name = "off"
        kind = "stale-daemons"
        schedule.every = "1h"
        ping = { url = "http://off" }
        enabled = false
        "#;
    let config = load(text, &[]).map_err(|problems| lines(&problems)).expect("no problem");
    let [(spec, params)] = config.jobs.as_slice() else { panic!("a disabled job is left out") };
    assert_eq!((spec.name.as_str(), spec.kind.as_str()), ("hello_1", "greet"));
    let dst = Dst { gap: Some(DstGap::Skip), fold: Some(DstFold::Last) };
    let schedule = Schedule::cron_with("0 30 2 * * *", "Europe/Berlin", dst).and_then(|schedule| {
        schedule.within(Some(instant("2026-12-01T00:00:00Z")), Some(instant("2030-01-01T00:00:00Z")))
    });
    assert_eq!(Ok(&spec.schedule), schedule.as_ref());
    assert_eq!((spec.misfire_grace, spec.catch_up_limit), (Some(Duration::from_hours(2)), 24));
    assert_eq!(spec.jitter, Duration::from_mins(5));
    assert_eq!((spec.scope, spec.misfire, spec.run_at_start), (Scope::Node, Misfire::CatchUp, true));
    assert_eq!(spec.timeout, Duration::from_mins(90));
    let retry = Retry {
        max_attempts: 2,
        backoff: Duration::from_secs(1),
        max_backoff: Duration::from_mins(1),
        jitter_percent: 0,
    };
    assert_eq!(spec.retry, retry);
    assert_eq!(*params, json!({ "name": "Ada", "times": [1, 16], "style": { "bold": true } }));
    let ping = Ping {
        url: Secret::Env("PING_URL".to_owned()),
        start: None,
        fail: Some(Secret::Text("https://hc-ping.com/1/fail".to_owned())),
        timeout: Duration::from_secs(3),
    };
    assert_eq!(config.pings, BTreeMap::from([("hello_1".to_owned(), ping)]), "a disabled job gives no signs");
    assert_eq!(config.billing_interval, None);
}

/// What `check` reports of jobs of the kinds that need no Rust: what is refused, and what is a warning.
#[test]
fn kinds_report_what_cannot_work() {
    let registry = kinds_for_validation(&Plugins::none());
    let environment = Environment::load(|_| None, Path::new("/nowhere"), None).expect("readable");
    let http =
        |lines: &str| format!("kind = 'http'\ntimeout = '1m'\nschedule.every = '1h'\n[job.params]\n{lines}");
    let command = |lines: &str| format!("kind = 'command'\nschedule.every = '1h'\n[job.params]\n{lines}");
    let tick = |schedule: &str| format!("kind = 'stale-daemons'\nschedule = {schedule}\n");
    for (job, refused, warned) in [
        (http("url = 'https://a'"), vec![], vec![]),
        (
            http("url = 's3cret'\nheaders.'a b' = 'x'\nheaders.B = \"s3cret\\u0000\"\nexpect-status = [42]"),
            vec![
                "7:7: parameters of kind `http` at `url`: invalid URL: it must begin with http:// or https://",
                "8:17: parameters of kind `http` at `headers.a b`: `a b` is not a valid header name: use letters, digits and -",
                "9:13: parameters of kind `http` at `headers.B`: invalid header value: use one line without control characters",
                "10:17: parameters of kind `http` at `expect-status`: invalid status 42: use 100 to 599",
            ],
            vec![],
        ),
        (
            http("url = 'https://a'\ntimeout = '2m'\nca-file = '/no/ca.pem'"),
            vec![
                "8:11: `timeout` is longer than that of the job, which is 1m, so shorten it, or increase `timeout` of the job",
            ],
            vec![],
        ),
        (
            http("url = 'https://a'\nca-file = '/no/ca.pem'"),
            vec![],
            vec![
                "8:11: `ca-file` /no/ca.pem: No such file or directory (os error 2), so create it before the job runs, or correct the path",
            ],
        ),
        (
            command("argv = ['/no/such/program']"),
            vec![],
            vec![
                "6:9: /no/such/program is not a program, so create it before the job runs, or correct the path",
            ],
        ),
        (
            command("argv = ['sh']\nenvironment = { 'A=B' = 's3cret' }"),
            vec![
                "7:25: parameters of kind `command` at `environment.A=B`: `A=B` is not a valid variable name: it must not be empty or contain = or NUL",
            ],
            vec![],
        ),
        (tick("{ at = '2026-03-01T12:00:00Z' }"), vec![], vec![]),
        (
            tick("{ at = '2026-03-01T11:59:59Z' }"),
            vec![],
            vec![
                "4:19: `at` is in the past: only a run that was missed can still start, so correct or remove it",
            ],
        ),
        (
            tick("[{ every = '1h', not-after = '2026-01-01T00:00:00Z' }, { every = '2h' }]"),
            vec![],
            vec![
                "4:41: `not-after` is in the past: only a run that was missed can still start, so correct or remove it",
            ],
        ),
        // What is not used is not warned of.
        (format!("enabled = false\n{}", command("argv = ['/no/such/program']")), vec![], vec![]),
    ] {
        // Line 3 is the first of the job's own; another job is enabled.
        let text = format!(
            "[[job]]\nname = 'a'\n{job}\n[[job]]\nname = 'b'\nkind = 'stale-daemons'\nschedule.every = '1h'\n"
        );
        let expected =
            |lines: Vec<&str>| lines.iter().map(|line| format!("jobs.toml:{line}")).collect::<Vec<_>>();
        match Config::load(&text, "jobs.toml", &environment, &registry, now()) {
            Ok(config) => {
                assert_eq!(refused, [""; 0], "{text}");
                assert_eq!(lines(&config.warnings), expected(warned), "{text}");
            }
            Err(problems) => {
                assert_eq!(lines(&problems), expected(refused), "{text}");
                assert!(!format!("{problems:?}").contains("s3cret"), "{problems:?}");
            }
        }
    }
}

#[test]
fn the_schema_that_the_shipped_file_names_is_what_the_command_prints() {
    let printed = format!("{:#}", schema(&kinds_for_validation(&Plugins::none())));
    let committed = include_str!("../../shipped/jobs.schema.json");
    assert!(printed == committed.trim_end(), "run `billing-daemon schema > jobs.schema.json`");
    assert!(SHIPPED.starts_with("#:schema ./jobs.schema.json\n"));
}

#[test]
fn places_of_signs() {
    for (ping, expected) in [
        ("1", "5:8: `ping` must be a table such as { url = \"https://hc-ping.com/...\" }, not an integer"),
        ("{ start = \"http://a\" }", "5:8: missing key `url`"),
        (
            "{ url = 1 }",
            "5:16: `url` must be text, { env = \"NAME\" } or { file = \"/path\" }, not an integer",
        ),
        ("{ url = {} }", "5:16: `url` must be text, { env = \"NAME\" } or { file = \"/path\" }"),
        (
            "{ url = { env = \"A\", file = \"/b\" } }",
            "5:16: `url` must be text, { env = \"NAME\" } or { file = \"/path\" }",
        ),
        ("{ url = { file = 1 } }", "5:25: `file` must be a string, not an integer"),
        (
            "{ url = \"http://a\", fail = \"s3cret\" }",
            "5:35: `fail`: invalid URL: it must begin with http:// or https://",
        ),
        ("{ url = \"http://a\", fial = \"http://b\" }", "5:28: unknown key `fial`, did you mean `fail`?"),
        (
            "{ url = \"http://a\", timeout = \"0s\" }",
            "5:38: `timeout`: invalid duration `0s`: it must be greater than zero",
        ),
    ] {
        check(&job(&format!("{HOURLY}ping = {ping}")), &[&format!("jobs.toml:{expected}")]);
    }
}

#[test]
fn the_environment_wins() {
    let text = format!(
        "[daemon]\ndatabase-url = \"sqlite://a.db\"\nlog-level = \"warn\"\n{}",
        billing("{ every = \"1h\" }")
    );
    let config = load(&text, &[]).expect("no problem");
    assert_eq!(config.daemon.database_url.expect("one").expose(), "sqlite://a.db");
    assert_eq!(config.daemon.log_filter, "warn".parse().expect("a level"));
    let variables =
        [("DATABASE_URL", "sqlite://b.db"), ("LOG_LEVEL", "DEBUG"), ("BILLING_INTERVAL_MINUTES", "15")];
    let config = load(&text, &variables).expect("no problem");
    assert_eq!(config.daemon.database_url.expect("one").expose(), "sqlite://b.db");
    assert_eq!(config.daemon.log_filter, "debug".parse().expect("a level"));
    assert_eq!(Ok(&config.jobs[0].0.schedule), Schedule::every(Duration::from_mins(15)).as_ref());
    assert_eq!(config.billing_interval, Some(Duration::from_mins(15)));
}

#[test]
fn bad_variables_are_told_with_the_rest() {
    check_with(
        &job("shedule = { every = \"1h\" }"),
        &[("DATABASE_URL", "mysql://u:s3cret@h/d"), ("LOG_LEVEL", "loud"), ("BILLING_INTERVAL_MINUTES", "0")],
        &[
            "environment: BILLING_INTERVAL_MINUTES: `0` is no whole number of minutes from 1 to 525600",
            "environment: DATABASE_URL: the database URL begins with `mysql:`, which is not supported: use postgres:// or sqlite://",
            "jobs.toml:1:1: missing key `schedule`",
            "jobs.toml:4:1: unknown key `shedule`, did you mean `schedule`?",
        ],
    );
}

const HOURLY: &str = "schedule = { every = \"1h\" }\n";

#[test]
fn syntax() {
    check("[[job]]\nname = \"a", &["jobs.toml:2:10: invalid basic string, expected `\"`"]);
    check(&format!("\u{feff}{}", job(HOURLY).replace('\n', "\r\n")), &[]);
    check("[[job]]\nname = \"a\"\nname = \"b\"", &["jobs.toml:3:1: duplicate key"]);
    check(
        "# ü\n\"ü\" = a\nkind = = 3 4\njob = [\n1,,2]\n[daemon",
        &[
            "jobs.toml:2:7: string values must be quoted, expected literal string",
            "jobs.toml:3:8: extra `=`, expected nothing",
            "jobs.toml:5:3: extra comma in array, expected value",
            "jobs.toml:6:8: unclosed table, expected `]`",
        ],
    );
}

#[test]
fn unknown_keys_and_wrong_types() {
    check(
        "jobs = 1\n[daemon]\nlease_ttl = 1\nbanana = 1\n[[job]]",
        &[
            "jobs.toml:1:1: unknown key `jobs`, did you mean `job`?",
            "jobs.toml:3:1: unknown key `lease_ttl`, did you mean `lease-ttl`?",
            "jobs.toml:4:1: unknown key `banana`, known: `database-url`, `log-level`, `drain-timeout`, `lease-ttl`, `state-dir`, `panel-billing`, `allow-unverified-database`",
            "jobs.toml:5:1: missing key `kind`",
            "jobs.toml:5:1: missing key `name`",
            "jobs.toml:5:1: missing key `schedule`",
        ],
    );
    check(
        "daemon = 1\njob = [1, { nam = \"a\", kind = 2, schedule = \"1h\" }]",
        &[
            "jobs.toml:1:10: `daemon` must be a table, not an integer",
            "jobs.toml:2:8: `job` must be a table, not an integer",
            "jobs.toml:2:11: missing key `name`",
            "jobs.toml:2:13: unknown key `nam`, did you mean `name`?",
            "jobs.toml:2:31: `kind` must be a string, not an integer",
            "jobs.toml:2:45: `schedule` must be a table such as { every = \"1h\" }, { cron = \"0 * * * *\" } or { at = \"2026-12-01T00:00:00Z\" }, or a list of them, not a string",
        ],
    );
    check(
        &job(&format!(
            "{HOURLY}scope = 1\nrun-at-start = \"true\"\nenabled = 1\ntimeout = 600\nretry = 3\nparams = []"
        )),
        &[
            "jobs.toml:5:9: `scope` must be a string, not an integer",
            "jobs.toml:6:16: `run-at-start` must be true or false, not a string",
            "jobs.toml:7:11: `enabled` must be true or false, not an integer",
            "jobs.toml:8:11: `timeout` must be a duration in quotes such as \"5m\", not an integer",
            "jobs.toml:9:9: `retry` must be a table such as { max-attempts = 5, backoff = \"15s\", max-backoff = \"5m\" }, not an integer",
            "jobs.toml:10:10: `params` must be a table, not an array",
        ],
    );
    check("[job]\nname = \"a\"", &["jobs.toml:1:1: `job` must be written as [[job]], not a table"]);
}

#[test]
fn no_enabled_job() {
    let nothing =
        "jobs.toml: no job is enabled: write a [[job]] with `name`, `kind` and `schedule`, or enable one";
    check("", &[nothing]);
    check(&job(&format!("{HOURLY}enabled = false")), &[nothing]);
}

#[test]
fn names_and_kinds() {
    check(
        &format!("{}[[job]]\nname = \"Ä b\"\nkind = \"heartbaet\"\n{HOURLY}", job(HOURLY).repeat(2)),
        &[
            "jobs.toml:6:8: a job named `a` is at jobs.toml:2:8 already",
            "jobs.toml:10:8: `name`: `Ä b` is no job name: use a-z, 0-9, _ and -",
            "jobs.toml:11:8: unknown kind `heartbaet`, did you mean `heartbeat`?",
        ],
    );
    check(
        &format!("[[job]]\nname = \"a\"\nkind = \"mine-bitcoin\"\n{HOURLY}"),
        &[
            "jobs.toml:3:8: unknown kind `mine-bitcoin`, known: `audit`, `billing`, `greet`, `heartbeat`, `prune-history`, `stale-daemons`",
        ],
    );
}

#[test]
fn words_and_numbers() {
    check(
        &job(&format!(
            "{HOURLY}scope = \"nodes\"\nmisfire = \"later\"\nretry = {{ max-attempts = 0, backoff = \"10m\" }}\n"
        )),
        &[
            "jobs.toml:5:9: `scope` cannot be `nodes`, did you mean `node`?",
            "jobs.toml:6:11: `misfire` cannot be `later`, known: `coalesce`, `catch-up`, `skip`",
            "jobs.toml:7:26: `max-attempts` must be at least 1 and at most 4294967295, not 0",
            "jobs.toml:7:39: `backoff` is longer than `max-backoff`, which is 5m",
        ],
    );
}

#[test]
fn durations() {
    check(
        &job(&format!(
            "{HOURLY}timeout = \"0s\"\nretry = {{ backoff = \"-1s\", max-backoff = \"1 month\", max-backof = \"1h\" }}\n"
        )),
        &[
            "jobs.toml:5:11: `timeout`: invalid duration `0s`: it must be greater than zero",
            "jobs.toml:6:21: `backoff`: invalid duration `-1s`: it must not be negative",
            "jobs.toml:6:42: `max-backoff`: invalid duration `1 month`: months and years have no fixed length; use days, such as `30d`",
            "jobs.toml:6:53: unknown key `max-backof`, did you mean `max-backoff`?",
        ],
    );
}

#[test]
fn the_daemon_table() {
    let daemon = r#"
        [daemon]
        lease-ttl = "2s"
        drain-timeout = "half an hour"
        log-level = "inof"
        database-url = "postgres://ada:s3/cret@db/panel""#;
    check(
        &format!("{}{daemon}", job(HOURLY)),
        &[
            "jobs.toml:7:21: `lease-ttl` must be at least 3s, or a lease ends before it can be renewed",
            "jobs.toml:8:25: `drain-timeout`: invalid duration `half an hour`: use numbers with units, such as `90s`, `15m`, `1h 30m` or `30d`",
            "jobs.toml:9:21: `log-level`: unknown log level `inof`, did you mean `info`?",
            "jobs.toml:10:24: `database-url`: the database URL is malformed (invalid port number): write postgres://user:password@host:5432/database, with / in a password as %2F, or sqlite://file",
        ],
    );
}

#[test]
fn schedules() {
    for (schedule, expected) in [
        (
            "{}",
            r#"12: `schedule` must be a table such as { every = "1h" }, { cron = "0 * * * *" } or { at = "2026-12-01T00:00:00Z" }, or a list of them"#,
        ),
        (r#"{ every = "1h", cron = "@daily" }"#, "28: `every` and `cron` exclude each other: remove one"),
        (
            r#"{ every = "1h", timezone = "UTC" }"#,
            "28: `timezone` goes with `cron` only: `every` counts from 1970-01-01 in UTC",
        ),
        (
            r#"{ every = "500ms" }"#,
            "22: `every`: a period must be a whole number of seconds, at least one and at most ten years, not 500ms",
        ),
        (r#"{ every = "0s" }"#, "22: `every`: invalid duration `0s`: it must be greater than zero"),
        (r#"{ every = "-5m" }"#, "22: `every`: invalid duration `-5m`: it must not be negative"),
        (
            r#"{ every = "1M" }"#,
            "22: `every`: invalid duration `1M`: months and years have no fixed length; use days, such as `30d`",
        ),
        ("{ cron = 5 }", "21: `cron` must be a string, not an integer"),
        (
            r#"{ cron = "a b" }"#,
            "22: invalid cron text `a b`: it has 2 fields, write 5 fields (minute, hour, day of month, month, day of week), 6 with the second first, or a nickname such as @hourly",
        ),
        (
            r#"{ cron = "0 0 30 2 *" }"#,
            "26: invalid cron text `0 0 30 2 *`: day of month `30` never comes: month `2` has at most 29 days, write an earlier day, or `L` for the last day of a month",
        ),
        (
            r#"{ cron = "15, 45 * * * *" }"#,
            "22: invalid cron text `15, 45 * * * *`: minute `15, 45` has a space in its list, write `15,45` without a space",
        ),
        (
            r"{ cron = '  0 7 * SUN *' }",
            "30: invalid cron text `  0 7 * SUN *`: month `SUN` is the name of a day of the week, move it to the field `day of week`, which is the last one",
        ),
        // With escapes in it, the text is not in the file as it is.
        (
            r#"{ cron = "0\t24 * * *" }"#,
            "21: invalid cron text `0\\t24 * * *`: hour `24` is not within 0-23, use a number from 0 to 23",
        ),
        (
            r#"{ cron = "@daily", timezone = "europe/berln" }"#,
            "42: unknown time zone `europe/berln`, did you mean `Europe/Berlin`?",
        ),
        (
            r#"{ cron = "@daily", timezone = "Mars" }"#,
            "42: unknown time zone `Mars`: use a name of the IANA database such as `Europe/Berlin` or `UTC`",
        ),
    ] {
        check(&job(&format!("schedule = {schedule}")), &[&format!("jobs.toml:4:{expected}")]);
    }
    check(
        &job(r#"schedule = { cron = "61 0 * * * *", timezone = "Europe/Berlni" }"#),
        &[
            "jobs.toml:4:22: invalid cron text `61 0 * * * *`: second `61` is not within 0-59, use a number from 0 to 59",
            "jobs.toml:4:48: unknown time zone `Europe/Berlni`, did you mean `Europe/Berlin`?",
        ],
    );
}

#[test]
fn schedules_of_every_kind() {
    let every = |seconds| Schedule::every(Duration::from_secs(seconds)).expect("valid");
    let at = |text| Schedule::at(instant(text)).expect("whole");
    let window = |schedule: Schedule, begin: Option<&str>, end: Option<&str>| {
        schedule.within(begin.map(instant), end.map(instant)).expect("not empty")
    };
    let berlin = |fold| {
        let dst = Dst { gap: None, fold };
        Schedule::cron_with("30 2 * * *", "Europe/Berlin", dst).expect("valid")
    };
    let list = |schedules: &[Schedule]| Schedule::any(schedules.to_vec()).expect("not empty");
    let rows = [
        (r#"{ every = "1h", offset = "5m" }"#, every(3_600).offset(Duration::from_mins(5)).expect("shorter")),
        (r#"{ at = "2026-12-01T01:00:00+01:00" }"#, at("2026-12-01T00:00:00Z")),
        ("{ at = 2026-12-01T00:00:00Z }", at("2026-12-01T00:00:00Z")),
        (
            r#"[{ every = "1h" }, { at = 2026-12-01T00:00:00Z }]"#,
            list(&[every(3_600), at("2026-12-01T00:00:00Z")]),
        ),
        (r#"[{ every = "1h" }]"#, every(3_600)),
        (
            r#"[{ every = "1h", not-after = 2026-11-30T23:00:00Z }, { every = "30m", not-before = 2026-12-01T00:00:00Z }]"#,
            list(&[
                window(every(3_600), None, Some("2026-11-30T23:00:00Z")),
                window(every(1_800), Some("2026-12-01T00:00:00Z"), None),
            ]),
        ),
        (
            "{ cron = \"30 2 * * *\", timezone = \"Europe/Berlin\" }\ndst-fold = \"last\"",
            berlin(Some(DstFold::Last)),
        ),
        (
            "[{ cron = \"30 2 * * *\", timezone = \"Europe/Berlin\", dst-fold = \"both\" }, { every = \"1h\" }]\ndst-fold = \"last\"",
            list(&[berlin(Some(DstFold::Both)), every(3_600)]),
        ),
    ];
    for (text, expected) in rows {
        let config = load(&job(&format!("schedule = {text}")), &[]);
        let config = config.map_err(|problems| lines(&problems)).expect("no problem");
        assert_eq!(config.jobs[0].0.schedule, expected, "{text}");
    }
}

#[test]
fn what_contradicts_itself_in_a_schedule() {
    for (schedule, expected) in [
        (
            r#"{ every = "1h", offset = "1h" }"#,
            "37: `offset`: an offset must be a whole number of seconds and shorter than the period, not 3600s",
        ),
        (
            r#"{ cron = "@daily", offset = "5m" }"#,
            "31: `offset` goes with `every` only: write the minute into the cron text",
        ),
        (
            r#"{ every = "1h", dst-gap = "skip" }"#,
            "28: `dst-gap` goes with `cron` only: `every` counts from 1970-01-01 in UTC",
        ),
        (
            r#"{ at = "2026-12-01T00:00:00Z", timezone = "Europe/Berlin" }"#,
            "43: `timezone` goes with `cron` only: `at` names its own offset from UTC",
        ),
        (
            r#"{ at = 2026-12-01T00:00:00Z, every = "1h" }"#,
            "41: `every` and `at` exclude each other: remove one",
        ),
        (
            "{ at = 2026-12-01T00:00:00 }",
            "19: `at` must be a time with its offset from UTC such as \"2026-12-01T00:00:00Z\", not 2026-12-01T00:00:00",
        ),
        (
            r#"{ at = "2026-02-30T00:00:00Z" }"#,
            "19: `at` must be a time with its offset from UTC such as \"2026-12-01T00:00:00Z\", not 2026-02-30T00:00:00Z",
        ),
        (
            "{ at = 1 }",
            "19: `at` must be a time with its offset from UTC such as \"2026-12-01T00:00:00Z\", not an integer",
        ),
        (
            "{ at = 2026-12-01T00:00:00.5Z }",
            "19: `at`: a scheduled time is a whole second, not 2026-12-01T00:00:00.500Z",
        ),
        (
            r#"{ cron = "0 0 29 2 *", not-before = 2025-01-01T00:00:00Z, not-after = 2027-01-01T00:00:00Z }"#,
            "21: `0 0 29 2 * in UTC` never comes between `not-before` and `not-after`",
        ),
        (
            "{ at = 2026-12-01T00:00:00Z, not-before = 2027-01-01T00:00:00Z }",
            "19: `at 2026-12-01T00:00:00Z` never comes after `not-before`",
        ),
        (
            r#"{ every = "1h", not-before = 2027-01-01T00:00:00Z, not-after = 2026-01-01T00:00:00Z }"#,
            "75: `not-after` is before `not-before`: nothing would ever run",
        ),
        (
            "[]",
            "12: `schedule` is empty: it must be a table such as { every = \"1h\" }, { cron = \"0 * * * *\" } or { at = \"2026-12-01T00:00:00Z\" }, or a list of them",
        ),
        (
            "[{ every = \"1h\" }, 3]",
            "31: `schedule` must be a table such as { every = \"1h\" }, { cron = \"0 * * * *\" } or { at = \"2026-12-01T00:00:00Z\" }, or a list of them, not an integer",
        ),
        (
            r#"[{ every = "1h" }, { every = "0s" }]"#,
            "41: `every`: invalid duration `0s`: it must be greater than zero",
        ),
        (
            r#"{ cron = "@daily", dst-fold = "never" }"#,
            "42: `dst-fold` cannot be `never`, known: `first`, `last`, `both`",
        ),
        (
            r#"{ cron = "@reboot" }"#,
            "22: invalid cron text `@reboot`: `@reboot` is an unknown nickname, use `run-at-start` for a run at the start",
        ),
    ] {
        check(&job(&format!("schedule = {schedule}")), &[&format!("jobs.toml:4:{expected}")]);
    }
}

#[test]
fn what_contradicts_itself_in_a_policy() {
    let at = "schedule = { at = 2026-12-01T00:00:00Z }\n";
    let cron = "schedule = { cron = \"0 9,10 * * *\" }\n";
    for (text, expected) in [
        (
            format!("{at}misfire = \"catch-up\""),
            "5:11: `catch-up` has nothing to catch up: a single `at` comes once, so use `coalesce` or `skip`",
        ),
        (
            format!("{HOURLY}misfire-grace = \"49ms\""),
            "5:17: `misfire-grace` must be at least 50ms: a run may start that late",
        ),
        (
            format!("{HOURLY}misfire-grace = \"1m\"\njitter = \"5m\""),
            "5:17: `misfire-grace` is shorter than `jitter`, which is 5m: some runs would be too late before they start",
        ),
        (
            format!("{HOURLY}jitter = \"61m\""),
            "5:10: `jitter` is longer than the shortest time between two runs, which is 1h",
        ),
        (
            format!("{cron}jitter = \"2h\""),
            "5:10: `jitter` is longer than the shortest time between two runs, which is 1h",
        ),
        (
            format!("{HOURLY}catch-up-limit = 10"),
            "5:1: `catch-up-limit` goes with `misfire = \"catch-up\"` only: remove it",
        ),
        (
            format!("{HOURLY}misfire = \"skip\"\ncatch-up-limit = 10"),
            "6:1: `catch-up-limit` goes with `misfire = \"catch-up\"` only: remove it",
        ),
        (
            format!("{HOURLY}misfire = \"catch-up\"\ncatch-up-limit = 10001"),
            "6:18: `catch-up-limit` must be at least 1 and at most 10000, not 10001",
        ),
        (
            format!("{HOURLY}dst-gap = \"skip\""),
            "5:1: `dst-gap` goes with `cron` only: no clock changes for the others",
        ),
        (
            format!("{HOURLY}not-after = 2026-01-01T00:00:00Z\nnot-before = 2027-01-01T00:00:00Z"),
            "5:13: `not-after` is before `not-before`: nothing would ever run",
        ),
        (
            format!("{at}not-after = 2026-01-01T00:00:00Z"),
            "4:19: `at 2026-12-01T00:00:00Z` never comes before `not-after`",
        ),
        (
            format!("{HOURLY}retry = {{ jitter-percent = 101 }}"),
            "5:28: `jitter-percent` must be at least 0 and at most 100, not 101",
        ),
    ] {
        check(&job(&text), &[&format!("jobs.toml:{expected}")]);
    }
    check(&job(&format!("{HOURLY}misfire-grace = \"5m\"\njitter = \"5m\"")), &[]);
    check(&job(&format!("{HOURLY}misfire-grace = \"50ms\"")), &[]);
    check(&job(&format!("{HOURLY}jitter = \"1h\"")), &[]);
    check(&job(&format!("{at}misfire = \"skip\"\nmisfire-grace = \"1d\"\njitter = \"1h\"")), &[]);
}

#[test]
fn parameters() {
    let greet = |params: &str| format!("[[job]]\nname = \"a\"\nkind = \"greet\"\n{HOURLY}{params}");
    check(&greet(""), &["jobs.toml:1:1: parameters of kind `greet`: missing field `name`"]);
    check(&greet("[job.params]\n"), &["jobs.toml:5:1: parameters of kind `greet`: missing field `name`"]);
    check(
        &greet("params.name = 3"),
        &[
            "jobs.toml:5:15: parameters of kind `greet` at `name`: invalid type: integer `3`, expected a string",
        ],
    );
    check(
        &greet(
            "[job.params]\nnam = \"a\"\nwhom = 1\ntimes = [1, \"2\"]\nstyle = { bald = true, size = 256 }",
        ),
        &[
            "jobs.toml:6:1: kind `greet` has no parameter `nam`, did you mean `name`?",
            "jobs.toml:7:1: kind `greet` has no parameter `whom`, known: `name`, `times`, `style`",
            "jobs.toml:8:13: parameters of kind `greet` at `times.1`: invalid type: string \"2\", expected u32",
            "jobs.toml:9:11: kind `greet` has no parameter `bald`, did you mean `bold`?",
            "jobs.toml:9:31: parameters of kind `greet` at `style.size`: invalid value: integer `256`, expected u8",
        ],
    );
    check(
        &greet("[job.params]\nname = \"a\"\nsize = 99999999999999999999\ntimes = [inf]"),
        &[
            "jobs.toml:7:8: this number is too large, or none: write another",
            "jobs.toml:8:10: this number is too large, or none: write another",
        ],
    );
    check(
        &job("schedule.every = \"1h\"\nparams.x = 1"),
        &["jobs.toml:5:8: kind `stale-daemons` has no parameter `x`, there are none"],
    );
}

#[test]
fn the_job_of_kind_billing_is_one_and_has_its_name() {
    let right = billing("{ every = \"1h\" }");
    let renamed = right.replace("name = \"billing\"", "name = \"b\"");
    let other = right.replace("kind = \"billing\"", "kind = \"stale-daemons\"");
    check(&renamed, &["jobs.toml:2:8: the job of kind `billing` must be named `billing`"]);
    check(
        &other,
        &["jobs.toml:2:8: only the job of kind `billing` may be named `billing`: choose another name"],
    );
    check(&right.repeat(2), &["jobs.toml:6:8: a job named `billing` is at jobs.toml:2:8 already"]);
    check(
        &(right.clone() + &renamed),
        &["jobs.toml:7:8: only one job may be of kind `billing`: jobs.toml:1:1 is one"],
    );
    check(
        &(right + "scope = \"node\""),
        &["jobs.toml:5:9: kind `billing` runs once for all daemons: its `scope` must be `cluster`"],
    );
}

#[test]
fn billing_that_leaves_the_panel_alone_for_too_long_must_say_so() {
    let refused = |place: &str, who: &str, gap: &str| {
        format!(
            "{place}: {who} has no run for {gap}, but the panel takes billing back 90 minutes after the last heartbeat, so run it at least every 90 minutes, or set `allow-long-gaps = true` if that is intended"
        )
    };
    for schedule in ["{ every = \"90m\" }", "{ cron = \"*/30 * * * *\" }", "{ cron = \"* * * * * *\" }"] {
        check(&billing(schedule), &[]);
    }
    for (schedule, column, gap) in [
        ("{ every = \"91m\" }", 22, "1h 31m (from 2026-03-01T13:10:00Z to 2026-03-01T14:41:00Z)"),
        (
            "{ cron = \"0 8-18 * * *\", timezone = \"Europe/Berlin\" }",
            21,
            "14h (from 2026-03-01T17:00:00Z to 2026-03-02T07:00:00Z)",
        ),
        ("{ cron = \"0 0 29 2 *\" }", 21, "35064h (from 2028-02-29T00:00:00Z to 2032-02-29T00:00:00Z)"),
    ] {
        let problem = refused(&format!("jobs.toml:4:{column}"), "`schedule`", gap);
        check(&billing(schedule), &[&problem]);
        check(&billing(schedule).replace("billing", "heartbeat"), &[&problem]);
        check(&(billing(schedule) + "allow-long-gaps = false"), &[&problem]);
        check(&(billing(schedule) + "allow-long-gaps = true"), &[]);
        check(&(billing(schedule) + "enabled = false\n" + &job(HOURLY)), &[]);
    }
    let two_hours = [("BILLING_INTERVAL_MINUTES", "120")];
    let hourly = billing("{ every = \"1h\" }");
    let gap = "2h (from 2026-03-01T14:00:00Z to 2026-03-01T16:00:00Z)";
    check_with(&hourly, &two_hours, &[&refused("environment", "BILLING_INTERVAL_MINUTES", gap)]);
    check_with(&(hourly + "allow-long-gaps = true"), &two_hours, &[]);
    check(
        &job(&format!("{HOURLY}allow-long-gaps = true")),
        &["jobs.toml:5:1: `allow-long-gaps` is for the kinds `billing` and `heartbeat` only: remove it"],
    );
}

#[test]
fn what_is_hardly_intended_gives_a_warning() {
    let warnings = |text: &str, variables: &[(&str, &str)]| {
        load(text, variables).map(|config| lines(&config.warnings)).map_err(|problems| lines(&problems))
    };
    let billing = billing("{ every = \"1h\" }");
    let heartbeat = job(HOURLY).replace("stale-daemons", "heartbeat");
    let unseen = "jobs.toml:1:1: billing runs without an enabled job of kind `heartbeat`: a panel that listens for one bills as well";
    assert_eq!(warnings(&billing, &[]), Ok(vec![unseen.to_owned()]));
    assert_eq!(warnings(&format!("{billing}{heartbeat}enabled = false"), &[]), Ok(vec![unseen.to_owned()]));
    assert_eq!(warnings(&format!("{billing}{heartbeat}"), &[]), Ok(vec![]));
    let ineffective =
        "environment: BILLING_INTERVAL_MINUTES has no effect: no enabled job is of kind `billing`";
    assert_eq!(
        warnings(&job(HOURLY), &[("BILLING_INTERVAL_MINUTES", "30")]),
        Ok(vec![ineffective.to_owned()])
    );
}

#[test]
fn the_schema_has_every_key_and_accepts_the_shipped_file() {
    let schema = schema(&registry());
    let keys =
        |of: &Value| of["properties"].as_object().expect("a table").keys().cloned().collect::<Vec<_>>();
    let sorted = |keys: &[&str]| {
        let mut keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
        keys.sort_unstable();
        keys
    };
    let of = &schema["properties"];
    assert_eq!(keys(&schema), ["daemon", "http", "job"]);
    assert_eq!(keys(&of["daemon"]), sorted(&super::daemon::KEYS));
    assert_eq!(keys(&of["http"]), sorted(&super::http::KEYS));
    assert_eq!(keys(&of["job"]["items"]), sorted(&super::job::KEYS));
    assert_eq!(keys(&of["job"]["items"]["properties"]["retry"]), sorted(&super::job::RETRY_KEYS));
    assert_eq!(keys(&schema["$defs"]["ping"]), sorted(&super::job::PING_KEYS));
    let mut of_schedules: Vec<_> =
        ["every", "cron", "at"].iter().flat_map(|kind| keys(&schema["$defs"][kind])).collect();
    of_schedules.sort_unstable();
    of_schedules.dedup();
    assert_eq!(of_schedules, sorted(&super::schedule::KEYS));
    check_schema(SHIPPED, &[]);
}

#[test]
fn what_the_schema_calls_a_default_is_what_the_daemon_does_without() {
    let schema = schema(&registry());
    let properties = &schema["properties"];
    let keys = |of: &Value| -> Vec<(String, String)> {
        let entries = of["properties"].as_object().expect("a table").iter();
        let told = entries.filter_map(|(key, of)| Some((key.clone(), of.get("default")?.to_string())));
        told.collect()
    };
    let cron = "schedule = { cron = \"@hourly\" }\n";
    let without = job(cron);
    let mut tried = 0;
    let mut same = |text: String| {
        // A limit of catching up is for jobs that catch up.
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

proptest! {
    #[test]
    fn what_an_editor_takes_for_a_duration_is_one(
        parts in prop::collection::vec(("[0-9]{1,3}", "(\\.[0-9])?", "[a-zM]{1,7}", " ?"), 1..3),
    ) {
        let text: String = parts.into_iter().map(|(whole, tenths, unit, gap)| whole + &tenths + &unit + &gap).collect();
        let matches = jsonschema::is_valid(&json!({ "pattern": duration::PATTERN }), &json!(text));
        match duration::parse(&text) {
            Ok(_) => prop_assert!(matches, "{}", text),
            Err(error) => prop_assert!(
                !matches || error.contains("must be greater than zero") || error.contains("at most ten years") || text.contains('.'),
                "{}: {}", text, error
            ),
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = load(&String::from_utf8_lossy(&bytes), &[]);
    }

    #[test]
    fn no_damage_to_a_file_makes_it_panic(
        pieces in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..40, r#"[\[\]{}="'#.,a1\n -]{0,4}"#), 1..5),
    ) {
        let mut text = SHIPPED.replace("\n# ", "\n");
        for (at, length, with) in pieces {
            let start = text.floor_char_boundary(at.index(text.len()));
            let end = text.ceil_char_boundary((start + length).min(text.len()));
            text.replace_range(start..end, &with);
        }
        if let Err(problems) = load(&text, &[]) {
            prop_assert!(!problems.is_empty());
        }
    }
}

/// The jobs.toml that ships and the built-in defaults are the same jobs.
#[test]
fn built_in_defaults_match_shipped_file() {
    let plugins = Plugins::none();
    let environment = Environment::load(|_| None, Path::new("/nowhere"), None).expect("an empty environment");
    let jobs = |text: &str| {
        let config =
            Config::load(text, "built-in defaults", &environment, &kinds_for_validation(&plugins), now());
        let config = config.expect("both are valid");
        assert!(config.warnings.is_empty() && config.http.is_none(), "{:?}", config.warnings);
        (format!("{:?}", config.daemon), config.jobs.iter().map(|job| format!("{job:?}")).collect::<Vec<_>>())
    };
    assert_eq!(jobs(BUILT_IN), jobs(SHIPPED));
    let broken = BUILT_IN.replace("every = \"1h\"", "every = \"1x\"");
    let problems =
        Config::load(&broken, "built-in defaults", &environment, &kinds_for_validation(&plugins), now());
    assert!(problems.expect_err("no duration")[0].to_string().starts_with("built-in defaults:"));
}
