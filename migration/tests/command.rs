//! The program, as `sea-orm-cli migrate` and an operator run it.

use std::process::{Command, Output};

use tempfile::TempDir;

fn migration(args: &[&str], url: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_migration"));
    command.args(args).env_remove("DATABASE_URL").env_remove("DATABASE_SCHEMA");
    if let Some(url) = url {
        command.env("DATABASE_URL", url);
    }
    command.output().expect("the binary was built for this test")
}

/// Checks the exit code and the output, on both streams, of a command.
#[track_caller]
fn check(args: &[&str], url: Option<&str>, code: i32, printed: &str) {
    let output = migration(args, url);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("the output is UTF-8");
    assert_eq!((output.status.code(), text.as_str()), (Some(code), printed), "{args:?}");
}

#[test]
fn migrations_are_applied_and_reverted() {
    let dir = TempDir::new().expect("the system has a folder for temporary files");
    let url = format!("sqlite://{}", dir.path().join("new.db").display());
    let url = Some(url.as_str());
    let first = "m20261122_000001_panel_tables";
    let second = "m20261122_000002_scheduler_tables";
    let third = "m20261122_000003_billing_tables";

    check(&["up", "-n", "1"], url, 0, &format!("applied {first}\n"));
    let table = format!(
        "migration                          state\n{first}      applied\n{second}  pending\n{third}    pending\n"
    );
    check(&["status"], url, 0, &table);
    check(&[], url, 0, &format!("applied {second}\napplied {third}\n"));
    check(&["up"], url, 0, "nothing to do\n");
    check(&["down", "-n", "1"], url, 0, &format!("reverted {third}\n"));
    check(&["down", "--num", "9"], url, 0, &format!("reverted {second}\nreverted {first}\n"));
    check(&["down"], url, 0, "nothing to do\n");
}

#[test]
fn reading_commands_create_no_file() {
    let dir = TempDir::new().expect("the system has a folder for temporary files");
    let file = dir.path().join("new.db");
    let url = format!("sqlite://{}?mode=rwc", file.display());
    for command in ["status", "down"] {
        assert_eq!(migration(&[command], Some(&url)).status.code(), Some(69), "{command}");
        assert!(!file.exists(), "{command}");
    }
    assert_eq!(migration(&["up"], Some(&url)).status.code(), Some(0));
    assert!(migration(&["status"], Some(&url)).status.success());
}

#[test]
fn missing_database_url_is_reported() {
    let error = "error: no database: set DATABASE_URL or pass --database-url\n";
    check(&["up"], None, 78, error);
    check(&["status"], Some(""), 78, error);
}

#[test]
fn commands_that_drop_everything_are_refused() {
    let url = Some("sqlite::memory:");
    for name in ["fresh", "refresh", "reset"] {
        let error = format!(
            "error: cannot run `{name}`: this database also holds the panel's tables; use `down` to remove the tables \
             of billing\n"
        );
        check(&[name], url, 64, &error);
    }
}

#[test]
fn failures_have_exit_codes_without_password() {
    for (args, url, code) in [
        (["sideways"], "sqlite::memory:", 64),
        (["up"], "oracle://me:s3cret@localhost/panel", 78),
        (["up"], "postgres://me:s3cret@localhost:port/panel", 78),
        (["up"], "postgres://me:s3cret@no-such-host.invalid/panel", 69),
        (["status"], "sqlite:///no/such/folder/billing.db", 69),
    ] {
        let output = migration(&args, Some(url));
        let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("the output is UTF-8");
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}
