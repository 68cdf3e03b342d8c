//! jobs.toml as a whole: rows of a text and the diagnostics that it gives. Tests of one section are next to it.

use std::{path::Path, time::Duration};

use billing_scheduler::{Schedule, Scope, duration};
use proptest::prelude::*;
use serde_json::json;

use super::{
    BUILT_IN, Config,
    testing::{HOURLY, SHIPPED, billing, check, check_with, job, lines, load, now},
};
use crate::{
    config::environment::Environment,
    plugins::{Plugins, kinds_for_validation},
};

#[test]
fn shipped_file_is_valid() {
    // The parameters behind `#` are those of the kinds, which other tests cover.
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
fn commented_keys_of_shipped_file_exist() {
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
fn environment_wins_over_file() {
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
fn invalid_variables_are_reported_with_mistakes() {
    check_with(
        &job("shedule = { every = \"1h\" }"),
        &[("DATABASE_URL", "mysql://u:s3cret@h/d"), ("LOG_LEVEL", "loud"), ("BILLING_INTERVAL_MINUTES", "0")],
        &[
            "environment: BILLING_INTERVAL_MINUTES: invalid number of minutes `0`: use a whole number from 1 to 525600",
            "environment: DATABASE_URL: the database URL begins with `mysql:`, which is not supported: use postgres:// or sqlite://",
            "jobs.toml:1:1: missing key `schedule`",
            "jobs.toml:4:1: unknown key `shedule`\nhelp: did you mean `schedule`?",
        ],
    );
}

#[test]
fn syntax_errors_are_reported_once_per_line() {
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
fn unknown_keys_and_types_are_reported() {
    check(
        "jobs = 1\n[daemon]\nlease_ttl = 1\nbanana = 1\n[[job]]",
        &[
            "jobs.toml:1:1: unknown key `jobs`\nhelp: did you mean `job`?",
            "jobs.toml:3:1: unknown key `lease_ttl`\nhelp: did you mean `lease-ttl`?",
            "jobs.toml:4:1: unknown key `banana`\nhelp: known: `allow-unverified-database`, `database-url`, `drain-timeout`, `lease-ttl`, `log-level`, `panel-billing`, `state-dir`",
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
            "jobs.toml:2:13: unknown key `nam`\nhelp: did you mean `name`?",
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
fn file_needs_an_enabled_job() {
    let nothing =
        "jobs.toml: no job is enabled: add a [[job]] with `name`, `kind` and `schedule`, or enable one";
    check("", &[nothing]);
    check(&job(&format!("{HOURLY}enabled = false")), &[nothing]);
}

#[test]
fn invalid_names_and_kinds_are_reported() {
    check(
        &format!("{}[[job]]\nname = \"Ä b\"\nkind = \"heartbaet\"\n{HOURLY}", job(HOURLY).repeat(2)),
        &[
            "jobs.toml:6:8: jobs.toml:2:8 has a job named `a` already",
            "jobs.toml:10:8: `name`: invalid job name `Ä b`: use a-z, 0-9, _ and -",
            "jobs.toml:11:8: unknown kind `heartbaet`\nhelp: did you mean `heartbeat`?",
        ],
    );
    check(
        &format!("[[job]]\nname = \"a\"\nkind = \"mine-bitcoin\"\n{HOURLY}"),
        &[
            "jobs.toml:3:8: unknown kind `mine-bitcoin`\nhelp: known: `audit`, `billing`, `deliver`, `greet`, `heartbeat`, `prepaid`, `prune-history`, `stale-daemons`",
        ],
    );
}

proptest! {
    #[test]
    fn duration_pattern_matches_parser(
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
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = load(&String::from_utf8_lossy(&bytes), &[]);
    }

    #[test]
    fn damaged_file_never_panics(
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
