//! Generated documents: the schema for editors, shell completions, manual pages, and alerts for Prometheus.

use std::{fs, path::Path, process::Command};

use billing_test_support::{Program, skipped};
use serde_json::Value;

use super::{json, keys};
use crate::daemon::program;

const SCHEMA: &str = include_str!("../../../jobs.schema.json");
const JOBS: &str = include_str!("../../../jobs.toml");

#[tokio::test]
async fn schema_contains_plugin_kinds() {
    let printed = program().run("schema").await.expect_code(0).out.join("\n");
    let schema: Value = serde_json::from_str(&printed).expect("one JSON object");
    let kinds =
        schema["properties"]["job"]["items"]["properties"]["kind"]["enum"].as_array().expect("a list");
    for kind in ["billing", "http", "test.tick"] {
        assert!(kinds.contains(&Value::from(kind)), "{kinds:?}");
    }
}

/// A job of every kind of mistake that an editor can show. The daemon refuses each of them.
const MISTAKES: [&str; 10] = [
    "shedule = { every = \"1h\" }",
    "schedule = { every = \"1 month\" }",
    "schedule = { every = \"1h\", timezone = \"UTC\" }",
    "schedule = { at = 2026-12-01T00:00:00 }",
    "schedule = { every = \"1h\" }\nmisfire = \"later\"",
    "schedule = { every = \"1h\" }\ncatch-up-limit = 5",
    "schedule = { every = \"1h\" }\nallow-long-gaps = true",
    "schedule = { every = \"1h\" }\nparams = { kep = \"30d\" }",
    "schedule = { every = \"1h\" }\nparams = { keep = \"1 month\" }",
    "schedule = { every = \"1h\" }\nping = { start = \"https://hc-ping.com/1/start\" }",
];
const RIGHT: &str = r#"
schedule = [
    { every = "1h", offset = "5m" },
    { at = 2026-12-01T00:00:00Z },
    { at = "2026-12-01T00:00:00Z" },
    { cron = "@hourly", timezone = "Europe/Berlin", dst-gap = "skip" },
]
misfire = "catch-up"
catch-up-limit = 4
ping = { url = { env = "PING" }, fail = "https://hc-ping.com/1/fail" }
params = { keep = "30d" }
"#;

/// Editors check by what `taplo` (Even Better TOML) and `tombi` read. Either may be missing: `pip install taplo tombi` brings them.
#[tokio::test]
async fn editor_linters_agree_with_daemon() {
    let job = |rest: &str| {
        format!("#:schema ./jobs.schema.json\n[[job]]\nname = \"tidy\"\nkind = \"stale-daemons\"\n{rest}\n")
    };
    let program = program().env("DATABASE_URL", "sqlite://none.db").file("jobs.schema.json", SCHEMA);
    let files = [(JOBS.to_owned(), true), (job(RIGHT), true)];
    let mistakes = MISTAKES.map(|mistake| (job(mistake), false));
    for (number, (text, right)) in files.into_iter().chain(mistakes).enumerate() {
        let name = format!("{number}.toml");
        let file = program.folder().join(&name);
        fs::write(&file, &text).expect("written");
        program.run(&format!("check --config {name}")).await.expect_code(if right { 0 } else { 78 });
        for (tool, arguments) in [("taplo", ["lint"].as_slice()), ("tombi", &["lint", "--offline"])] {
            let linted = Command::new(tool).args(arguments).arg(&name).current_dir(program.folder()).output();
            match linted {
                Err(_) => skipped(&format!("{tool} is not installed: {name} is not checked as in an editor")),
                Ok(output) => {
                    let report = String::from_utf8_lossy(&output.stderr).into_owned()
                        + &String::from_utf8_lossy(&output.stdout);
                    assert_eq!(output.status.success(), right, "{tool}: {text}\n{report}");
                }
            }
        }
    }
}

#[tokio::test]
async fn shell_completes_nested_commands() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = program().run(&format!("completions {shell}")).await.expect_code(0).out.join("\n");
        for word in ["explain", "approve-catch-up", "accept-restore"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
    // The completions of bash after `billing-daemon jobs tr`.
    let program = program();
    let script = program.run("completions bash").await.expect_code(0).out.join("\n");
    let complete = "COMP_WORDS=(billing-daemon jobs tr); COMP_CWORD=2; _billing__daemon billing-daemon tr jobs; echo ${COMPREPLY[@]}";
    match Command::new("bash").args(["--norc", "-c", &format!("{script}\n{complete}")]).output() {
        Err(_) => skipped("there is no bash to complete anything"),
        Ok(output) => assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "trigger", "{output:?}"),
    }
}

#[tokio::test]
async fn manual_has_page_for_each_command() {
    let page = program().run("man").await.expect_code(0).text();
    assert!(page.contains(".TH billing\\-daemon 1") || page.contains(".TH billing-daemon 1"), "{page}");
    assert!(page.contains("DATABASE_URL_FILE") && page.contains("75  temporary failure"), "{page}");
    let program = program();
    fs::create_dir(program.folder().join("man1")).expect("a folder");
    program.run("man --dir man1").await.expect_code(0);
    let files: Vec<_> = fs::read_dir(program.folder().join("man1"))
        .expect("it is there")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    for page in
        ["billing-daemon.1", "billing-daemon-run.1", "billing-daemon-jobs-trigger.1", "billing-daemon-man.1"]
    {
        assert!(files.iter().any(|file| file == page), "{page} is not among {files:?}");
    }
    let ended = program.run("man --dir nowhere").await.expect_code(78);
    assert!(ended.text().contains("cannot write to nowhere"), "{}", ended.text());
}

#[tokio::test]
async fn version_prints_target_and_schema() {
    let program: Program = program().env("DATABASE_URL", "sqlite://new.db");
    let version = json(&program.run("version --json").await.expect_code(0));
    assert_eq!(keys(&version), ["features", "profile", "schema", "target", "version"]);
    assert!(
        version["target"].as_str().is_some_and(|target| target.contains(std::env::consts::ARCH)),
        "{version}"
    );
    assert!(
        version["features"].as_array().is_some_and(|features| features.contains(&Value::from("testing")))
    );
    let schema = version["schema"].as_str().expect("a name").to_owned();
    let applied = program.run("migrate up").await.expect_code(0);
    assert_eq!(
        applied.out.last(),
        Some(&format!("applied  {schema}")),
        "it is the newest of {}",
        applied.text()
    );
    let text = program.run("version").await.expect_code(0).text();
    assert!(text.contains(&schema) && text.contains("features  console, otel, testing"), "{text}");
}

#[test]
fn alerts_fire_as_documented() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dashboards");
    let tested =
        Command::new("promtool").args(["test", "rules", "alerts.test.yml"]).current_dir(folder).output();
    match tested {
        Err(_) => {
            skipped(
                "promtool is not installed (on Debian: apt-get install prometheus): the alerts are not checked",
            );
        }
        Ok(tested) => {
            let output = [tested.stdout, tested.stderr].concat();
            assert!(tested.status.success(), "{}", String::from_utf8_lossy(&output));
        }
    }
}
