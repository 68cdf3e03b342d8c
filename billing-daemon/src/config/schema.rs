//! What editors are told of jobs.toml: its JSON Schema. The words, limits and defaults are those that the file is read with, and
//! the parameters of a kind are described by the type that reads them.

use std::time::Duration;

use billing_jobs::BILLING_JOB;
use billing_kinds::Ping;
use billing_scheduler::{JobSpec, Registry, Retry, Schedule, Skipped, duration};
use serde_json::{Map, Value, json};

use super::{DaemonSettings, daemon, job, panel, schedule};

/// The schema of a file that names the kinds of `registry`.
#[must_use]
pub fn schema(registry: &Registry) -> Value {
    let mut definitions = definitions();
    // Not as `dependentSchemas`, which not every editor knows.
    let catch_up_limit = json!({
        "if": { "required": ["catch-up-limit"] },
        "then": { "properties": { "misfire": { "const": "catch-up" } }, "required": ["misfire"] },
    });
    let mut of_kinds = Vec::new();
    for kind in registry.kinds() {
        of_kinds.push(of_kind(registry, kind, &mut definitions));
    }
    let ping = embedded(schemars::schema_for!(Ping).to_value(), "ping", &mut definitions);
    definitions.insert("ping".to_owned(), ping);
    let conditions = [vec![catch_up_limit], of_kinds].concat();
    let kinds: Vec<_> = registry.kinds().collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "jobs.toml of billing-daemon",
        "description": "What billing-daemon runs, and when. `billing-daemon check` tells everything that is wrong with it.",
        "type": "object",
        "additionalProperties": false,
        "required": ["job"],
        "properties": {
            "daemon": daemon_table(),
            "http": http_table(),
            "job": {
                "description": "What runs, and when: one [[job]] each.",
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": job::REQUIRED,
                    "properties": job_keys(&kinds),
                    "allOf": conditions,
                },
            },
        },
        "$defs": definitions,
    })
}

fn daemon_table() -> Value {
    let default = DaemonSettings::default();
    json!({
        "description": "The process.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "database-url": {
                "description": "Where the panel's tables are: postgres://user:password@host:5432/panel or sqlite://billing.db. \
                                DATABASE_URL wins.",
                "type": "string",
                "pattern": r"^\s*([Pp][Oo][Ss][Tt][Gg][Rr][Ee][Ss]([Qq][Ll])?|[Ss][Qq][Ll][Ii][Tt][Ee]):[^\s]*\s*$",
            },
            "log-level": {
                "description": "Which events are logged: a level, or targets with levels such as \
                                billing_daemon=debug,sqlx=warn. LOG_LEVEL wins.",
                "anyOf": [
                    { "enum": crate::config::log::LEVELS },
                    { "type": "string", "pattern": r"[=\[,]|^(ERROR|WARN|INFO|DEBUG|TRACE)$" },
                ],
                "default": "info",
            },
            "drain-timeout": length("How long runs in progress continue after SIGTERM or SIGINT before they are asked to stop; billing stops after its batch then.", default.drain_timeout),
            "lease-ttl": length(
                "How long the work of a daemon that died waits for another one; at least 3s.",
                default.lease_ttl,
            ),
            "state-dir": {
                "description": "Where this machine notes the last batch that it committed. A systemd service has \
                                $STATE_DIRECTORY without this.",
                "type": "string",
            },
            "panel-billing": words(
                "Whether a panel on the same database bills by itself. `off`: the operator has switched that off.",
                &daemon::PANEL_BILLING,
                default.panel_billing,
            ),
            "allow-unverified-database": flag(
                "Whether a database on another machine may do without proving by TLS that it is the one.",
                default.allow_unverified_database,
            ),
        },
    })
}

fn http_table() -> Value {
    json!({
        "description": "Answers questions over HTTP, and changes nothing. Off without this section.",
        "type": "object",
        "additionalProperties": false,
        "required": ["listen"],
        "properties": {
            "listen": {
                "description": "A loopback address such as 127.0.0.1:9464, or a Unix socket: unix:/run/billing-daemon/http.sock.",
                "type": "string",
                "pattern": r"^(unix:/.*|127\.[0-9.]+:[0-9]+|\[::1\]:[0-9]+)$",
            },
            "allowed-hosts": {
                "description": "Names under which a proxy on this host may send requests, next to localhost, 127.0.0.1 and [::1].",
                "type": "array",
                "items": { "type": "string" },
                "default": [],
            },
            "allowed-uids": {
                "description": "Numbers of users that may connect to a Unix socket, next to root and the daemon's own user.",
                "type": "array",
                "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX },
                "default": [],
            },
        },
    })
}

fn job_keys(kinds: &[&str]) -> Value {
    let default = plain();
    json!({
        "name": {
            "description": "Unique among the jobs. Its history goes by this name.",
            "type": "string",
            "pattern": "^[a-z0-9_-]+$",
        },
        "kind": { "description": "Which code runs.", "enum": kinds },
        "schedule": {
            "description": "When: a table, or a list of them, which is due whenever one of it is.",
            "anyOf": [
                { "$ref": "#/$defs/every" },
                { "$ref": "#/$defs/cron" },
                { "$ref": "#/$defs/at" },
                { "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/schedule" } },
            ],
        },
        "not-before": instant("Nothing is due before this."),
        "not-after": instant("Nothing is due after this."),
        "dst-gap": dst_gap(),
        "dst-fold": dst_fold(),
        "jitter": length("Each run starts up to this long after its scheduled time, the same on every daemon.", None),
        "scope": words(
            "cluster: one of the daemons that share a database runs it. node: each of them does.",
            &job::SCOPE,
            default.scope,
        ),
        "misfire": words(
            "What becomes of scheduled times that passed without a run. coalesce: one run for all of them. catch-up: each, oldest \
             first. skip: the latest alone, if it is hardly late.",
            &job::MISFIRE,
            default.misfire,
        ),
        "misfire-grace": length("A scheduled time that is later than this is not run; at least 50ms.", None),
        "catch-up-limit": {
            "description": "With `misfire = \"catch-up\"`: how many scheduled times may wait.",
            "type": "integer",
            "minimum": 1,
            "maximum": Skipped::MAX_COUNTED,
            "default": JobSpec::CATCH_UP_LIMIT,
        },
        "run-at-start": flag(
            "Whether a job that never ran before is due at once instead of at its next scheduled time.",
            default.run_at_start,
        ),
        "timeout": length("How long one run may take. A longer one is stopped and counts as failed.", default.timeout),
        "retry": retry(&default.retry),
        "enabled": flag("Whether the job runs.", true),
        "allow-long-gaps": flag(
            "That a gap of more than 90 minutes is intended, after which the panel takes billing back.",
            false,
        ),
        "ping": { "$ref": "#/$defs/ping" },
        "params": { "description": "What the kind reads.", "type": "object", "additionalProperties": true },
    })
}

/// A job that says nothing but what it must.
fn plain() -> JobSpec {
    JobSpec::new("", "", Schedule::every(Duration::from_hours(1)).expect("an hour is a period"))
}

fn retry(default: &Retry) -> Value {
    json!({
        "description": "How a failed run is tried again.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "max-attempts": {
                "description": "How often it is tried in all.",
                "type": "integer",
                "minimum": 1,
                "maximum": u32::MAX,
                "default": default.max_attempts,
            },
            "backoff": length("How long after the first failure; this doubles with each further one.", default.backoff),
            "max-backoff": length("The longest wait.", default.max_backoff),
            "jitter-percent": {
                "description": "By how many percent a wait is shortened at most.",
                "type": "integer",
                "minimum": 0,
                "maximum": 100,
                "default": default.jitter_percent,
            },
        },
    })
}

/// The kinds of schedules, each a definition of its own.
fn definitions() -> Map<String, Value> {
    let table = |required: &str, keys: &[(&str, Value)]| {
        let window = [
            ("not-before", instant("This schedule has nothing before this.")),
            ("not-after", instant("This schedule has nothing after this.")),
        ];
        let keys: Map<_, _> =
            keys.iter().chain(&window).map(|(key, of)| ((*key).to_owned(), of.clone())).collect();
        json!({ "type": "object", "additionalProperties": false, "required": [required], "properties": keys })
    };
    let every = [
        ("every", length("Every multiple of this since 1970, in whole seconds.", None)),
        ("offset", length("And that much later.", None)),
    ];
    let cron = [
        (
            "cron",
            json!({
                "description": "5 fields (minute, hour, day of month, month, day of week), 6 with the second first, or a nickname such as @hourly.",
                "type": "string",
                "pattern": r"^\s*(@(hourly|daily|midnight|weekly|monthly|yearly|annually)|[^@\s]\S*(\s+\S+){4,5})\s*$",
                "examples": ["0 5 * * * *", "30 2 * * *", "@hourly"],
            }),
        ),
        (
            "timezone",
            json!({
                "description": "A name of the IANA database, such as Europe/Berlin.",
                "type": "string",
                "default": "UTC",
            }),
        ),
        ("dst-gap", dst_gap()),
        ("dst-fold", dst_fold()),
    ];
    let at = [("at", instant("Once, at this time."))];
    let any = ["every", "cron", "at"].map(|kind| json!({ "$ref": format!("#/$defs/{kind}") }));
    [
        ("every", table("every", &every)),
        ("cron", table("cron", &cron)),
        ("at", table("at", &at)),
        ("schedule", json!({ "anyOf": any })),
    ]
    .map(|(name, schema)| (name.to_owned(), schema))
    .into_iter()
    .collect()
}

/// What holds for the jobs of `kind`. What its parameters refer to goes into `definitions`.
fn of_kind(registry: &Registry, kind: &str, definitions: &mut Map<String, Value>) -> Value {
    let params =
        registry.schema(kind).unwrap_or_else(|| json!({ "type": "object", "additionalProperties": true }));
    let mut keys = Map::new();
    keys.insert("params".to_owned(), embedded(params, kind, definitions));
    if kind == BILLING_JOB {
        keys.insert("name".to_owned(), json!({ "const": BILLING_JOB }));
        keys.insert("scope".to_owned(), json!({ "const": "cluster" }));
    } else {
        keys.insert("name".to_owned(), json!({ "not": { "const": BILLING_JOB } }));
    }
    if !panel::is_watched(kind) {
        keys.insert("allow-long-gaps".to_owned(), json!(false));
    }
    let needs_params = keys["params"]["required"].as_array().is_some_and(|required| !required.is_empty());
    json!({
        "if": { "properties": { "kind": { "const": kind } }, "required": ["kind"] },
        "then": { "properties": keys, "required": if needs_params { vec!["params"] } else { vec![] } },
    })
}

/// A schema that stands by itself, as a part of ours: what it refers to goes into `definitions`, under the name of its `owner`.
fn embedded(mut schema: Value, owner: &str, definitions: &mut Map<String, Value>) -> Value {
    if let Some(own) = schema.as_object_mut() {
        own.remove("$schema");
        own.remove("title");
        if let Some(Value::Object(further)) = own.remove("$defs") {
            let named = further.into_iter();
            definitions
                .extend(named.map(|(name, schema)| (format!("{owner}.{name}"), in_toml(schema, owner))));
        }
    }
    in_toml(schema, owner)
}

/// The schema of a kind's parameters, as TOML has them: without null, and with the limits of numbers in place of their formats.
fn in_toml(schema: Value, kind: &str) -> Value {
    match schema {
        Value::Object(entries) => {
            let mut entries: Map<_, _> = entries
                .into_iter()
                .filter(|(key, value)| !(key == "default" && value.is_null()))
                .map(|(key, value)| (key, in_toml(value, kind)))
                .collect();
            if let Some(name) = entries.get("$ref").and_then(|name| name.as_str()?.strip_prefix("#/$defs/")) {
                let name = format!("#/$defs/{kind}.{name}");
                entries.insert("$ref".to_owned(), name.into());
            }
            if let Some(format) = entries.get("format").and_then(Value::as_str) {
                let (least, most) = match format {
                    "uint" | "uint64" => (None, Some(i64::MAX)),
                    "uint32" => (None, Some(u32::MAX.into())),
                    "int32" => (Some(i32::MIN.into()), Some(i32::MAX.into())),
                    "uint8" | "uint16" | "int8" | "int16" | "int64" => (None, None),
                    _ => return Value::Object(entries),
                };
                entries.remove("format");
                for (key, limit) in [("minimum", least), ("maximum", most)] {
                    if let Some(limit) = limit {
                        entries.entry(key).or_insert(limit.into());
                    }
                }
            }
            match entries.get("type").and_then(Value::as_array).map(Vec::as_slice) {
                Some([one, null]) if null == "null" => {
                    let one = one.clone();
                    entries.insert("type".to_owned(), one);
                }
                _ => {}
            }
            match entries.get("anyOf").and_then(Value::as_array).map(Vec::as_slice) {
                Some([one, null]) if *null == json!({ "type": "null" }) => {
                    let one = one.clone();
                    entries.remove("anyOf");
                    entries.extend(one.as_object().cloned().unwrap_or_default());
                }
                _ => {}
            }
            Value::Object(entries)
        }
        Value::Array(values) => values.into_iter().map(|value| in_toml(value, kind)).collect(),
        other => other,
    }
}

fn length(description: &str, default: impl Into<Option<Duration>>) -> Value {
    let mut schema = json!({
        "description": description,
        "type": "string",
        "pattern": duration::PATTERN,
        "examples": ["90s", "15m", "1h 30m", "30d"],
    });
    if let Some(default) = default.into() {
        schema["default"] = duration::format(default).into();
    }
    schema
}

fn flag(description: &str, default: bool) -> Value {
    json!({ "description": description, "type": "boolean", "default": default })
}

fn words<T: Copy + PartialEq>(
    description: &str,
    words: &[(&'static str, T)],
    default: impl Into<Option<T>>,
) -> Value {
    let mut schema = json!({
        "description": description,
        "enum": words.iter().map(|(word, _)| *word).collect::<Vec<_>>(),
    });
    let default = default.into();
    if let Some((word, _)) = words.iter().find(|(_, value)| Some(*value) == default) {
        schema["default"] = (*word).into();
    }
    schema
}

fn dst_gap() -> Value {
    words(
        "What becomes of local times that a clock skips. shift: due once, after the gap. skip: not due that day.",
        &schedule::GAP,
        None,
    )
}

fn dst_fold() -> Value {
    words("What becomes of local times that come twice.", &schedule::FOLD, None)
}

fn instant(description: &str) -> Value {
    let text = json!({
        "type": "string",
        "pattern": r"^\s*[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})\s*$",
    });
    // By this format, editors that tell a time of TOML from a text know that it may be one.
    let time = json!({ "type": "string", "format": "date-time", "pattern": text["pattern"] });
    json!({ "description": description, "anyOf": [time, text], "examples": ["2026-12-01T00:00:00Z"] })
}
