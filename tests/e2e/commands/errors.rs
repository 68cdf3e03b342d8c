//! Errors: their messages and exit codes.

use billing_test_support::Sqlite;

use crate::daemon::program;

const BILLING: &str = "[[job]]\nname = \"billing\"\nkind = \"billing\"\nschedule = { every = \"1h\" }\n";
const HEARTBEAT: &str =
    "[[job]]\nname = \"heartbeat\"\nkind = \"heartbeat\"\nschedule = { every = \"1m\" }\nscope = \"node\"\n";

#[tokio::test]
async fn check_reports_every_mistake_with_position() {
    let wrong = "[[job]]\nname = \"billing\"\nkind = \"biling\"\nscedule = { every = \"1h\" }\n\n[daemon]\nlease-ttl = \"1s\"\n";
    let rows = [
        (
            wrong,
            vec![
                "jobs.toml:1:1: missing key `schedule`",
                "jobs.toml:3:8: unknown kind `biling`",
                "help: did you mean `billing`?",
                "jobs.toml:4:1: unknown key `scedule`",
                "help: did you mean `schedule`?",
                "jobs.toml:7:13: `lease-ttl` must be at least 3s, or a lease ends before it can be renewed",
                "error: 4 problems: nothing was started",
            ],
        ),
        (
            "[[job]\n",
            vec![
                "jobs.toml:1:7: unclosed array table, expected `]`",
                "error: 1 problem: nothing was started",
            ],
        ),
        (
            "",
            vec![
                "jobs.toml: no job is enabled: add a [[job]] with `name`, `kind` and `schedule`, or enable one",
                "error: 1 problem: nothing was started",
            ],
        ),
    ];
    for (jobs, output) in rows {
        let program = program().env("DATABASE_URL", "sqlite://billing.db").file("jobs.toml", jobs);
        for command in ["check", "run", "bill"] {
            let ended = program.run(command).await.expect_code(78);
            assert_eq!(ended.err, output, "{command}");
            assert!(ended.out.is_empty(), "{}", ended.text());
        }
    }
}

#[tokio::test]
async fn control_character_in_argument_is_rejected() {
    for arguments in ["jobs show a\u{7}", "runs list --job=\u{1b}[2J", "holds accept web-1 --reason a\u{9b}b"]
    {
        let ended = program().run(arguments).await.expect_code(64);
        let last = arguments.split_whitespace().count();
        assert_eq!(ended.err, [format!("error: argument {last} contains a control character")]);
    }
}

#[tokio::test]
async fn check_of_valid_file_changes_nothing() {
    let program = program().env("DATABASE_URL", "postgres://me:secret@nowhere/panel?sslmode=verify-full");
    let program = program.file("jobs.toml", &[BILLING, HEARTBEAT].concat());
    let ended = program.run("check").await.expect_code(0);
    assert_eq!(
        ended.out,
        ["ok: 2 jobs (billing, heartbeat) on postgres://me:***@nowhere/panel?sslmode=verify-full"]
    );
    assert!(ended.err.is_empty(), "{}", ended.text());

    let program = program.file("other.toml", BILLING).env("BILLING_INTERVAL_MINUTES", "0");
    let ended = program.run("check --config other.toml").await.expect_code(78);
    assert_eq!(
        ended.err[0],
        "environment: BILLING_INTERVAL_MINUTES: invalid number of minutes `0`: use a whole number from 1 to 525600"
    );
    let program = program.env("BILLING_INTERVAL_MINUTES", "60");
    let ended = program.run("check --config other.toml").await.expect_code(0);
    assert!(
        ended.err[0].starts_with("warning: other.toml:1:1: billing runs without an enabled job"),
        "{}",
        ended.text()
    );
}

/// A file of time zone data with a fixed offset of two hours.
fn fixed_two_hours() -> String {
    // Twice a header, the number of types and of letters, a type (7,200 seconds, no summer time, name 0) and its name.
    let header = format!("TZif2{}\0\0\0\u{1}\0\0\0\u{4}", "\0".repeat(15 + 4 * 4));
    let block = format!("{header}\0\0\u{1c}\u{20}\0\0XST\0");
    format!("{block}{block}\nXST-2\n")
}

#[tokio::test]
async fn differing_zone_rules_are_reported() {
    let cron = |zone: &str| {
        let schedule = format!("schedule = {{ cron = \"0 30 2 * * *\", timezone = \"{zone}\" }}");
        BILLING.replace("schedule = { every = \"1h\" }", &(schedule + "\nallow-long-gaps = true"))
    };
    let program =
        program().env("DATABASE_URL", "sqlite://billing.db").file("jobs.toml", &cron("Europe/Berlin"));
    std::fs::create_dir(program.folder().join("Europe")).expect("a folder of ours");
    let program = program.file("Europe/Berlin", &fixed_two_hours()).file("UTC", &fixed_two_hours());
    let zones = program.folder().display().to_string();
    let ended = program.env("TZDIR", &zones).run("check").await.expect_code(0);
    let output = ended.err.iter().find(|line| line.contains("Europe/Berlin")).expect("a warning");
    assert!(
        output.starts_with("warning: jobs.toml:4:") && output.contains("those of the host are used"),
        "{output}"
    );
}

#[tokio::test]
async fn every_error_has_its_exit_code() {
    let missing = "error: DATABASE_URL is not set";
    let url = "DATABASE_URL=sqlite://billing.db";
    let file = &format!("jobs.toml={BILLING}{HEARTBEAT}");
    let rows: [(&str, &[&str], i32, &str); 28] = [
        ("run", &[file], 78, missing),
        ("check", &[file], 78, missing),
        ("bill", &[file], 78, missing),
        ("bill", &[], 78, missing),
        ("audit", &[], 78, missing),
        ("migrate status", &[], 78, missing),
        ("migrate up", &["DATABASE_URL="], 78, missing),
        ("bill", &[url], 69, "cannot open sqlite://billing.db: "),
        ("run --config other.toml", &[url, file], 78, "cannot read other.toml: No such file or directory"),
        ("bill --config other.toml", &[url, file], 78, "cannot read other.toml: No such file or directory"),
        ("check --config other.toml", &[url], 78, "cannot read other.toml: No such file or directory"),
        (
            "check --env-file other.env",
            &[url, file],
            78,
            "other.env: cannot be read: No such file or directory",
        ),
        (
            "check",
            &["DATABASE_URL=mysql://db/panel", file],
            78,
            "environment: DATABASE_URL: the database URL begins with `mysql:`",
        ),
        (
            "bill",
            &["DATABASE_URL=sqlite://"],
            78,
            "environment: DATABASE_URL: the database URL names no file",
        ),
        ("demo --database-url nonsense", &[], 78, "the database URL has no scheme"),
        ("audit", &[url], 69, "cannot open sqlite://billing.db: "),
        ("audit", &["DATABASE_URL=sqlite://billing.db?mode=rwc"], 69, "cannot open sqlite://billing.db: "),
        ("bill", &["DATABASE_URL=sqlite://billing.db?mode=rwc"], 69, "cannot open sqlite://billing.db: "),
        (
            "migrate status",
            &["DATABASE_URL=postgres://127.0.0.1:1/panel"],
            69,
            "cannot open postgres://127.0.0.1:1/panel: ",
        ),
        ("", &[], 64, "Usage: "),
        ("frobnicate", &[], 64, "error: unrecognized subcommand 'frobnicate'"),
        ("bill --frobnicate", &[], 64, "error: unexpected argument '--frobnicate' found"),
        ("migrate", &[], 64, "Usage: "),
        ("migrate sideways", &[], 64, "error: unrecognized subcommand 'sideways'"),
        ("demo --instances 9", &[], 64, "error: invalid value '9' for '--instances <N>'"),
        ("demo --instances many", &[], 64, "error: invalid value 'many' for '--instances <N>'"),
        ("run --log-format xml", &[], 64, "error: invalid value 'xml' for '--log-format <LOG_FORMAT>'"),
        ("migrate down", &[url], 64, "this deletes every charge, meter and hold"),
    ];
    for (arguments, settings, code, output) in rows {
        let mut program = program();
        for (name, value) in settings.iter().filter_map(|setting| setting.split_once('=')) {
            program = match name {
                "jobs.toml" => program.file(name, value),
                _ => program.env(name, value),
            };
        }
        let ended = program.run(arguments).await;
        assert_eq!(ended.code, Some(code), "{arguments} {settings:?}: {}", ended.text());
        assert!(
            ended.err.iter().any(|line| line.contains(output)),
            "{arguments} {settings:?}: {}",
            ended.text()
        );
        assert!(ended.out.is_empty(), "{arguments} {settings:?}: {}", ended.text());
    }
}

#[tokio::test]
async fn help_and_version_exit_successfully() {
    let commands = ["run", "demo", "check", "migrate", "bill", "audit", "jobs", "runs"];
    let ended = program().run("--help").await.expect_code(0);
    for command in commands {
        assert!(ended.out.iter().any(|line| line.trim().starts_with(command)), "{command}: {}", ended.text());
        let ended = program().run(&format!("{command} --help")).await.expect_code(0);
        assert!(
            ended.err.is_empty() && ended.out.iter().any(|line| line.contains("Usage: ")),
            "{}",
            ended.text()
        );
    }
    let ended = program().run("--version").await.expect_code(0);
    assert_eq!(ended.out, [concat!("billing-daemon ", env!("CARGO_PKG_VERSION"))]);
}

#[tokio::test]
async fn unknown_kind_is_rejected_before_start() {
    let database = Sqlite::migrated().await;
    let jobs = "[[job]]\nname = \"greet\"\nkind = \"test.tock\"\nschedule = { every = \"1h\" }\n";
    let program = program().env("DATABASE_URL", &database.url()).file("jobs.toml", jobs);
    let ended = program.run("run").await.expect_code(78);
    assert_eq!(
        ended.err[..2],
        ["jobs.toml:3:8: unknown kind `test.tock`", "help: did you mean `test.tick`?"]
    );
}
